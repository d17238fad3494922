"""The agent as a child of ours, in the kubelet's place: started with the arguments that a pod has, ended with us.

It knows no manifest, and nothing of what the agent reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from semipd_agent.contract import CONFIG_FILE
from semipd_cli.preflight import RunError, find
from semipd_operator.render.pod import GRACE_SECONDS

_PR_SET_PDEATHSIG = 1
_PORT_FILE = "port"


async def start_agent(
    folder: Path, port: int, engine_arguments: Sequence[str], log_file: Path | None
) -> asyncio.subprocess.Process:
    """With the configuration that lies in the folder. `port`: of its API, 0 for a free one, which it tells there
    (`port_of`); `log_file`: for its and the engine's output, None for ours. Raises `RunError`."""
    own = ["--config", str(folder / CONFIG_FILE), "--host", "127.0.0.1", "--port", str(port)]
    output = log_file.open("ab") if log_file else None
    try:
        return await asyncio.create_subprocess_exec(
            find("semipd-agent"),
            *own,
            "--port-file",
            str(folder / _PORT_FILE),
            "--",
            *engine_arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C goes to us alone, and we pass on one SIGTERM: the agent drains.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    except OSError as error:
        raise RunError(f"semipd-agent cannot be started ({error.strerror}): install semipd[agent,engine]") from None
    finally:
        if output:
            output.close()


def port_of(folder: Path) -> int:
    """Of the agent's API; 0: it has not told it yet."""
    try:
        return int((folder / _PORT_FILE).read_text())
    except (OSError, ValueError):
        return 0


def catch_signals(
    child: asyncio.subprocess.Process, say: Callable[[str], None], asked_to_end: Callable[[signal.Signals], None]
) -> None:
    """Ctrl-C and SIGTERM drain, a second one kills. `asked_to_end` is told of each."""
    draining = False

    def stop(number: signal.Signals) -> None:
        nonlocal draining
        with contextlib.suppress(ProcessLookupError):
            if draining:
                os.killpg(child.pid, signal.SIGKILL)
            else:
                say(f"draining (up to {GRACE_SECONDS} s; once more to kill)")
                child.send_signal(signal.SIGTERM)
        draining = True
        asked_to_end(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)


def _die_with_parent() -> None:
    """Linux: the agent drains when we are killed; it never stays behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
