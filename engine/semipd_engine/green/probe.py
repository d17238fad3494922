"""``python -m semipd_engine.green.probe 20,40,60``: can two clients of this environment split the device so?

Two processes, as prefill's and decode's workers will be, make the same split, and each its lanes; each lane's SMs are
read back. Then, for pairs of rungs that should share no SM, both hold theirs at the same time (`green.hold`); and once
for two that do share some, which must be seen, too. Prints one line of JSON, an `Answer`. Torch-free; decides nothing.

``--client PHASE 20,40,60`` is one of the two: it answers each line of its input with one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from semipd_engine.contract import Phase
from semipd_engine.green.driver import Groups, Lane
from semipd_engine.green.hold import Held, Holder, Unprovable, open_device
from semipd_engine.green.ladder import Line, parsed
from semipd_engine.memory.driver import MISSING, CudaError

ARRIVE_SECONDS = 0.5
"""For blocks to begin on SMs that are free; those that are not free stay away for all of it."""


@dataclass
class Answer:
    error: str = ""
    """Why there is no split; then nothing else counts."""
    total: int = 0
    """SMs of the device."""
    sms: dict[str, dict[int, int]] = field(default_factory=dict)
    """Read back, by phase and percent."""
    lost: dict[int, str] = field(default_factory=dict)
    """Rungs that this device does not have, and why."""
    apart: bool | None = None
    """Do lanes that should share no SM share none? None: it could not be seen."""
    why: str = ""
    """What was seen, or why nothing was."""


class Client(Protocol):
    def ask(self, line: str) -> dict[str, Any]:
        """``hello``, ``hold PERCENT`` (answered when all are here, or `ARRIVE_SECONDS` later), ``state``, ``end``."""


def examine(clients: Mapping[Phase, Client], percents: Sequence[int]) -> Answer:
    answer = Answer()
    for phase, client in clients.items():
        said = client.ask("hello")
        if said.get("error"):
            return Answer(error=f"{phase}: {said['error']}")
        answer.total = said["total"]
        answer.sms[phase.value] = {int(percent): sms for percent, sms in said["sms"].items()}
        answer.lost |= {int(percent): why for percent, why in said["lost"].items()}
        answer.why = answer.why or said["unprovable"]
    rungs = [percent for percent in percents if percent not in answer.lost]
    if not answer.why:
        answer.apart, answer.why = together(clients, answer.sms, rungs, answer.total)
    return answer


def together(
    clients: Mapping[Phase, Client], sms: Mapping[str, Mapping[int, int]], rungs: Sequence[int], total: int
) -> tuple[bool | None, str]:
    """Do the phases' lanes of x + y <= 100 share no SM? Each rung of prefill with the largest of decode beside it; then
    the largest of both, which have more SMs than there are: all of them cannot be held, unless this proves nothing."""
    pairs = [(x, max(beside)) for x in rungs if (beside := [y for y in rungs if x + y <= 100])]
    if not pairs:
        return None, "no two rungs have room beside each other"
    top = max(rungs)
    try:
        for x, y in pairs:
            wanted, here, gone = _both(clients, sms, x, y)
            if gone:
                return None, f"at {x}/{y} blocks ended before they were let go"
            if here[0] < wanted[0]:
                return None, f"{here[0]} of {wanted[0]} blocks began on prefill's {x} % alone: the device is not free"
            if here[1] < wanted[1]:
                return False, f"at {x}/{y} decode had {here[1]} of its {wanted[1]} SMs while prefill held {wanted[0]}"
        wanted, here, _ = _both(clients, sms, top, top)
        if sum(here) > total:
            return None, f"{sum(here)} blocks were here at {top}/{top}, more than there are SMs: this proves nothing"
    except _Trouble as trouble:
        return None, str(trouble)
    tried = ", ".join(f"{x}/{y}" for x, y in pairs)
    return True, f"both phases held all of their SMs at {tried}"


def _both(
    clients: Mapping[Phase, Client], sms: Mapping[str, Mapping[int, int]], x: int, y: int
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Blocks that should be here, those that were, and those that were gone by then: prefill on x, then decode on y."""

    def ask(phase: Phase, line: str, what: str) -> int:
        said = clients[phase].ask(line)
        if said.get("error"):
            raise _Trouble(f"{phase}, {line}: {said['error']}")
        return int(said[what])

    prefill, decode = Phase.PREFILL, Phase.DECODE
    try:
        here = ask(prefill, f"hold {x}", "here"), ask(decode, f"hold {y}", "here")
        gone = ask(prefill, "state", "gone") + ask(decode, "state", "gone")  # after all were here
    finally:
        for client in clients.values():
            client.ask("end")
    return (sms[prefill][x], sms[decode][y]), here, gone


class _Trouble(Exception):
    """A client could not do what it was asked for."""


# ---- one client -----------------------------------------------------------------------------------------------------


class Local:
    """In this process, on the device."""

    def __init__(self, phase: Phase, percents: Sequence[int]) -> None:
        self._phase, self._percents = phase, percents
        self._lanes: dict[int, Lane] = {}
        self._holder: Holder | None = None
        self._held: Held | None = None

    def ask(self, line: str) -> dict[str, Any]:
        match line.split():
            case ["hello"]:
                try:
                    return self._open()
                except (CudaError, OSError) as error:
                    old = isinstance(error, CudaError) and error.code == MISSING
                    return {"error": f"{error}{'; green contexts came with the driver of CUDA 12.4' if old else ''}"}
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
        open_device()
        groups = Groups()
        line = Line(groups.sizes)
        lost, unprovable = line.coarse(self._percents), ""
        for percent in self._percents:
            if percent in lost:
                continue
            try:
                lane = groups.lane(line.groups(self._phase, percent))
            except CudaError as error:
                lost[percent] = f"{percent} % of {self._phase}: {error}"
                continue
            if lane.sm_count == line.sms(self._phase, percent):
                self._lanes[percent] = lane
            else:
                groups_have = line.sms(self._phase, percent)
                lost[percent] = f"{percent} % of {self._phase} has {lane.sm_count} SMs, its groups have {groups_have}"
        try:
            self._holder = Holder()
        except Unprovable as error:
            unprovable = str(error)
        sms = {percent: lane.sm_count for percent, lane in self._lanes.items()}
        return {"total": line.total, "sms": sms, "lost": lost, "unprovable": unprovable}


class Remote:
    """In a process of its own."""

    def __init__(self, phase: Phase, percents: str) -> None:
        command = [sys.executable, "-m", "semipd_engine.green.probe", "--client", phase.value, percents]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, line: str) -> dict[str, Any]:
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            said: dict[str, Any] = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            return {"error": f"the client ended with {process.wait()}", "here": 0, "gone": 0}
        return said

    def close(self) -> None:
        """It leaves the device by itself: a client of MPS that is killed may take others with it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(phase: Phase, percents: Sequence[int]) -> None:
    local = Local(phase, percents)
    for line in sys.stdin:
        try:
            said = local.ask(line)
        except CudaError as error:
            said = {"error": str(error), "here": 0, "gone": 0}
        print(json.dumps(said), flush=True)
    local.ask("end")  # whoever asked may be gone: no block stays behind


def main(arguments: Sequence[str]) -> None:
    if arguments[0] == "--client":
        return serve(Phase(arguments[1]), parsed(arguments[2]))
    clients = {phase: Remote(phase, arguments[0]) for phase in Phase}
    try:
        answer = examine(clients, parsed(arguments[0]))
    finally:
        for client in clients.values():
            client.close()
    print(json.dumps(asdict(answer)), flush=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
