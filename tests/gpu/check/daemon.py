"""``python -m tests.gpu.check.daemon [PROBE]``: an MPS daemon as the agent starts it, in a process of its own.

The first line of input is ``{"total", "counts"}`` of an earlier run, or ``{}``: then they are measured. Prints one
line of JSON: ``{"total", "counts", "variables", "seconds", "with_context"}`` (variables by rung), or ``{"refused"}``
with the reason. Then answers each line of input, ``status`` or ``terminate PID``, with ``{"status"}`` of the server,
and ends the daemon when the input ends.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import time

from semipd_agent.children import Children
from semipd_agent.gpu.telemetry import open_telemetry
from semipd_agent.partitioner.base import PartitionerUnavailable
from semipd_agent.partitioner.mps.control import ControlError
from semipd_agent.partitioner.mps.daemon import Daemon, StartFailed, claim
from semipd_agent.partitioner.mps.ladder import LADDER, Timing, implausible
from semipd_agent.partitioner.mps.preflight import default_base, judge, look
from semipd_agent.partitioner.mps.prober import ProbeFailed, Prober
from semipd_agent.partitioner.mps.programs import Programs
from semipd_agent.reaper import Reaper


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def serve(probe: list[str]) -> None:
    base, programs, timing, reaper = default_base(), Programs.find(probe), Timing(), Reaper()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reaper.reap)
    known = json.loads(await asyncio.to_thread(sys.stdin.readline) or "{}")
    try:
        judge(look(programs, open_telemetry(), base))
    except PartitionerUnavailable as error:
        return say(refused=f"{error.reason}: {error}")
    children = Children(reaper)
    private = claim(base)
    daemon = Daemon(programs, children, private / "1", timing)
    try:
        began = time.monotonic()
        await daemon.start()
        started = time.monotonic() - began
        prober = Prober(programs, children, timing)
        if known:
            total, counts = known["total"], {int(percent): count for percent, count in known["counts"].items()}
        else:
            total, counts = await prober.total(), await prober.counts(daemon)
        if said := implausible(total, counts):
            return say(refused=f"MPSNotEnforcing: {said}")
        variables = {percent: daemon.variables(percent) for percent in LADDER}
        say(total=total, counts=counts, variables=variables, seconds=started, with_context=prober.context_needed)
        while words := (await asyncio.to_thread(sys.stdin.readline)).split():
            try:
                if words[0] == "terminate":
                    await daemon.terminate(int(words[1]))
                say(status=await daemon.control.server_status(daemon.server))
            except ControlError as error:
                say(status=f"no answer: {error}")
    except (StartFailed, ProbeFailed) as error:
        say(refused=f"MPSStartFailed: {error}")
    finally:
        await daemon.quit()
        shutil.rmtree(private, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
