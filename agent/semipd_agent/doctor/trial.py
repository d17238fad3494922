"""The doctor's trial: start MPS for real, measure each rung, and end it. Needs a GPU whose preflight is good."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

from semipd_agent.children import Children
from semipd_agent.doctor.checks import Grade, Row
from semipd_agent.partitioner.mps.daemon import Daemon, StartFailed, claim
from semipd_agent.partitioner.mps.ladder import Timing, implausible
from semipd_agent.partitioner.mps.prober import ProbeFailed, Prober
from semipd_agent.partitioner.mps.programs import Programs
from semipd_agent.reaper import Reaper


def try_mps(programs: Programs, base: Path) -> Row:
    return asyncio.run(_try(programs, base, Timing()))


async def _try(programs: Programs, base: Path, timing: Timing) -> Row:
    reaper = Reaper()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reaper.reap)
    children = Children(reaper)
    private = claim(base)
    daemon = Daemon(programs, children, private / "1", timing)
    prober = Prober(programs, children, timing)
    try:
        await daemon.start()
        total = await prober.total()
        counts = await prober.counts(daemon)
    except (StartFailed, ProbeFailed) as e:
        return Row("MPS trial", Grade.FAIL, str(e), "read what the daemon says")
    finally:
        await daemon.quit()
        shutil.rmtree(private, ignore_errors=True)
    rungs = ", ".join(f"{percent} %: {seen}" for percent, seen in sorted(counts.items()))
    if said := implausible(total, counts):
        return Row("MPS trial", Grade.FAIL, said, "another limit is set on this GPU: look for a foreign daemon")
    when = " (once it has a context)" if prober.context_needed else ""
    return Row("MPS trial", Grade.OK, f"of {total} SMs a client sees {rungs}{when}")
