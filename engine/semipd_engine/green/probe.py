"""``python -m semipd_engine.green.probe 20,40,60``: can two clients of this environment split the device so?

Two processes, as prefill's and decode's workers will be, answer what `self_test` asks. Prints one line of JSON, its
`Answer`. Torch-free; decides nothing.

``--client PHASE 20,40,60`` is one of the two: it answers each line of its input with one line of JSON. It leaves the
device by itself when its input ends. One that does not answer in the self-test's time, or does not leave, is killed,
and none outlives whoever asks it: the MPS server is to be looked at after an answer with `trouble`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from semipd_engine.contract import Phase
from semipd_engine.green.driver import Groups, Lane, explained
from semipd_engine.green.hold import Held, Holder, Unprovable, close_device, open_device
from semipd_engine.green.ladder import Line, parsed
from semipd_engine.green.self_test import examine
from semipd_engine.memory.driver import CudaError
from semipd_engine.process import die_with_parent

SECONDS = 40.0
"""For all answers of both clients together: a few seconds are usual once the driver is there."""
LEAVE_SECONDS = 4.0
"""For a client to leave the device, and again for a killed one to be gone."""
LONGEST = 1 << 16
"""Bytes of an answer."""
ARRIVE_SECONDS = 0.5
"""For blocks to begin on SMs that are free; those that are not free stay away for all of it."""


class Local:
    """In this process, on the device."""

    def __init__(self, phase: Phase, percents: Sequence[int]) -> None:
        self._phase, self._percents = phase, percents
        self._lanes: dict[int, Lane] = {}
        self._opened = False
        self._holder: Holder | None = None
        self._held: Held | None = None

    def ask(self, line: str) -> dict[str, Any]:
        """Raises `CudaError`."""
        match line.split():
            case ["hello"]:
                return self._open()
            case ["hold", percent]:
                lane, holder = self._lanes[int(percent)], self._holder
                assert holder is not None
                self._held = holder.begin(lane.stream, lane.sm_count)
                give_up_at = time.monotonic() + ARRIVE_SECONDS
                while self._held.here < lane.sm_count and time.monotonic() < give_up_at:
                    time.sleep(0.001)
            case ["end"]:
                if self._held is not None:
                    self._held.end()
        return {"here": self._held.here, "gone": self._held.gone} if self._held is not None else {"here": 0, "gone": 0}

    def _open(self) -> dict[str, Any]:
        try:
            open_device()
        except OSError as error:
            return {"refused": str(error)}
        self._opened = True
        try:
            groups = Groups()
        except CudaError as error:
            return {"refused": explained(error)}
        line = Line(groups.sizes)
        lost, unprovable = line.coarse(self._percents), ""
        for percent in self._percents:
            if percent in lost:
                continue
            try:
                lane = groups.lane(line.groups(self._phase, percent))
            except CudaError as error:
                lost[percent] = f"{percent} % of {self._phase}: {explained(error)}"
                continue
            if lane.sm_count == line.sms(self._phase, percent):
                self._lanes[percent] = lane
            else:
                groups_have = line.sms(self._phase, percent)
                lost[percent] = f"{percent} % of {self._phase} has {lane.sm_count} SMs, its groups have {groups_have}"
                lane.close()
        try:
            self._holder = Holder()
        except Unprovable as error:
            unprovable = str(error)
        sms = {percent: lane.sm_count for percent, lane in self._lanes.items()}
        return {"sizes": groups.sizes, "sms": sms, "lost": lost, "unprovable": unprovable}

    def close(self) -> None:
        """Let all blocks go, and what was made, the last first. Raises `CudaError`."""
        self.ask("end")
        if self._holder is not None:
            self._holder.close()
        while self._lanes:
            self._lanes.popitem()[1].close()
        if self._opened:
            close_device()


class Remote:
    """In a process of its own, which ends with this one, whatever the driver makes it wait for."""

    def __init__(self, phase: Phase, percents: str, ends_at: float) -> None:
        """`ends_at`: by the monotonic clock, when no answer is waited for any more. Raises OSError."""
        command = [sys.executable, "-m", "semipd_engine.green.probe", "--client", phase.value, percents]
        self._ends_at = ends_at
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            preexec_fn=partial(die_with_parent, os.getpid()),  # one prctl, and no other thread is here
        )

    def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            text = self._line()
        except TimeoutError:
            self._process.kill()
            return {"error": f"no answer within the self-test's {SECONDS:g} s"}
        except OSError:
            text = b""
        try:
            said: dict[str, Any] = json.loads(text)
        except ValueError:
            said = {"error": f"the client said {text[:200]!r}" if text else f"the client ended with {self.close()}"}
        return said

    def _line(self) -> bytes:
        """What comes next, to its end, to `LONGEST`, or to the end of the client. Raises TimeoutError."""
        assert self._process.stdout is not None
        answers, text = self._process.stdout.fileno(), b""
        while not text.endswith(b"\n") and len(text) < LONGEST:
            if not select.select([answers], [], [], max(0.0, self._ends_at - time.monotonic()))[0]:
                raise TimeoutError
            if not (more := os.read(answers, LONGEST - len(text))):
                break
            text += more
        return text

    def close(self) -> int | None:
        """Its exit status, once it has left; None: it was killed, and is still not gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(LEAVE_SECONDS)
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(LEAVE_SECONDS)
        return None


def serve(phase: Phase, percents: Sequence[int]) -> None:
    """Until the input ends. What libraries print goes to standard error, and is no answer. Raises `CudaError` where
    the device cannot be left as it was found."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    local = Local(phase, percents)
    for line in sys.stdin:
        try:
            said = local.ask(line)
        except CudaError as error:
            said = {"error": explained(error)}
        print(json.dumps(said), file=answers, flush=True)
    local.close()


def main(arguments: Sequence[str]) -> None:
    if arguments[0] == "--client":
        return serve(Phase(arguments[1]), parsed(arguments[2]))
    clients, statuses = dict[Phase, Remote](), dict[Phase, int | None]()
    try:
        ends_at = time.monotonic() + SECONDS
        for phase in Phase:
            clients[phase] = Remote(phase, arguments[0], ends_at)
        answer = examine(clients, parsed(arguments[0]))
    finally:
        for phase, client in clients.items():
            statuses[phase] = client.close()
    if any(statuses.values()) or None in statuses.values():
        answer.trouble = answer.trouble or f"the clients ended with {list(statuses.values())}"
    print(json.dumps(asdict(answer)), flush=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
