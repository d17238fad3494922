"""What two clients of one device are asked, whether they split it alike and apart, and what their answers prove. Pure.

Both make the same split, and each its lanes, whose SMs are read back. Then, for pairs of rungs that should share no SM,
both hold theirs at the same time; and once for two that do share some, which must be seen, too. It knows no process and
no driver: `probe` runs the clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from semipd_engine.contract import Phase


@dataclass
class Answer:
    error: str = ""
    """Why there is no split; then nothing else counts."""
    trouble: str = ""
    """Why the self-test has come to no end: a client crashed, hung, or met an error of the device that green contexts
    are not known for. Then nothing else counts."""
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
        """``hello``, ``hold PERCENT`` (answered when all blocks are here, or after `probe.ARRIVE_SECONDS`), ``state``,
        ``end``. An answer with `error` is trouble."""


class Trouble(Exception):
    """A client could not do what it was asked for."""


def examine(clients: Mapping[Phase, Client], percents: Sequence[int]) -> Answer:
    try:
        return _examined(clients, percents)
    except Trouble as trouble:
        return Answer(trouble=str(trouble))


def _examined(clients: Mapping[Phase, Client], percents: Sequence[int]) -> Answer:
    answer, sizes = Answer(), dict[Phase, Any]()
    for phase in clients:
        said = _ask(clients, phase, "hello")
        if said.get("refused"):
            return Answer(error=f"{phase}: {said['refused']}")
        sizes[phase] = said["sizes"]
        answer.total = sum(sizes[phase])
        answer.sms[phase.value] = {int(percent): sms for percent, sms in said["sms"].items()}
        answer.lost |= {int(percent): why for percent, why in said["lost"].items()}
        answer.why = answer.why or said["unprovable"]
    if sizes[Phase.PREFILL] != sizes[Phase.DECODE]:
        answer.apart = False
        answer.why = f"prefill splits the device into {sizes[Phase.PREFILL]} SMs, decode into {sizes[Phase.DECODE]}"
    rungs = [percent for percent in percents if percent not in answer.lost]
    if not answer.why:
        answer.apart, answer.why = together(clients, answer.sms, rungs, answer.total)
    return answer


def _ask(clients: Mapping[Phase, Client], phase: Phase, line: str) -> dict[str, Any]:
    said = clients[phase].ask(line)
    if said.get("error"):
        raise Trouble(f"{phase}, {line}: {said['error']}")
    return said


def together(
    clients: Mapping[Phase, Client], sms: Mapping[str, Mapping[int, int]], rungs: Sequence[int], total: int
) -> tuple[bool | None, str]:
    """Do the phases' lanes of x + y <= 100 share no SM? Each rung of prefill with the largest of decode beside it; then
    the largest of both, which have more SMs than there are: all of them cannot be held, unless this proves nothing.
    Raises `Trouble`."""
    pairs = [(x, max(beside)) for x in rungs if (beside := [y for y in rungs if x + y <= 100])]
    if not pairs:
        return None, "no two rungs have room beside each other"
    top = max(rungs)
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
    tried = ", ".join(f"{x}/{y}" for x, y in pairs)
    return True, f"both phases held all of their SMs at {tried}"


def _both(
    clients: Mapping[Phase, Client], sms: Mapping[str, Mapping[int, int]], x: int, y: int
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Blocks that should be here, those that were, and those that were gone by then: prefill on x, then decode on y.
    Blocks whose client is in trouble are let go as it leaves."""
    prefill, decode = Phase.PREFILL, Phase.DECODE
    here = int(_ask(clients, prefill, f"hold {x}")["here"]), int(_ask(clients, decode, f"hold {y}")["here"])
    gone = sum(int(_ask(clients, phase, "state")["gone"]) for phase in clients)  # after all were here
    for phase in clients:
        _ask(clients, phase, "end")
    return (sms[prefill][x], sms[decode][y]), here, gone
