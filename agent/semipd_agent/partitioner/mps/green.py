"""What the self-test of green contexts found, and what follows: the rungs as streams of one worker for each phase.
Pure.

The test is the engine's own (`PROBE`), run by `prober` as clients of our daemon, at 100 %. Where it refuses, `mps` is
in force, and the refusal's name and remedy are told as long as it is (`Refused`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semipd_agent.partitioner.mps.ladder import LADDER, WHOLE
from semipd_engine.contract import GREEN_RUNGS, Phase

VARIABLE = "SEMIPD_PARTITION_BACKEND"
PROBE = (sys.executable, "-m", "semipd_engine.green.probe")
PERCENTS = tuple(rung for rung in LADDER if rung != WHOLE)
"""Of the rungs that are green contexts. 100 % is the device as it is."""
TEXT = ",".join(map(str, PERCENTS))
REMEDIES = {
    "GreenContextsUnavailable": "they need an NVIDIA driver of CUDA 12.4 (550) or newer, and SMs for two groups",
    "GreenContextsOverlap": "the driver gives two processes other groups: tell us the card and the driver",
    "GreenProbeFailed": "what it has said besides is in the agent's log",
}


class Refused(Exception):
    """`reason`: a key of `REMEDIES`."""

    def __init__(self, reason: str, found: str) -> None:
        unasked = f"unset {VARIABLE} to be rid of this message"
        super().__init__(f"mps is in force in place of mps-green: {reason}: {found}; {REMEDIES[reason]}, or {unasked}")
        self.reason = reason


@dataclass(frozen=True)
class Green:
    sms: Mapping[Phase, Mapping[int, int]]
    """By percent below 100, as two clients have read them back."""
    lost: Mapping[int, str]
    """Percents that this device does not have, and why."""
    seen: bool
    """Were lanes that should share no SM seen to share none?"""
    why: str
    """What was seen, or why nothing was."""

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Green:
        """Raises `Refused`; KeyError, TypeError, AttributeError or ValueError where it is no answer of the probe."""
        if said["trouble"]:
            raise Refused("GreenProbeFailed", str(said["trouble"]))
        if said["error"]:
            raise Refused("GreenContextsUnavailable", str(said["error"]))
        if said["apart"] is False:
            raise Refused("GreenContextsOverlap", str(said["why"]))
        lost = {int(percent): str(why) for percent, why in said["lost"].items()}
        sms = {
            phase: {int(percent): int(count) for percent, count in said["sms"][phase.value].items()} for phase in Phase
        }
        held = [
            percent for percent in PERCENTS if percent not in lost and all(percent in sms[phase] for phase in Phase)
        ]
        if not held:
            raise Refused("GreenContextsUnavailable", "; ".join(lost.values()) or "no rung below 100 %")
        kept = {phase: {percent: sms[phase][percent] for percent in held} for phase in Phase}
        return cls(kept, lost, said["apart"] is True, str(said["why"]))

    @property
    def rungs(self) -> tuple[int, ...]:
        return (*sorted(self.sms[Phase.PREFILL]), WHOLE)


def number(percent: int) -> int:
    """Of the rung, among those that a worker holds: 0 is the whole device."""
    return 0 if percent == WHOLE else 1 + PERCENTS.index(percent)


def percent_of(rung: int) -> int:
    """The inverse. Raises IndexError."""
    return WHOLE if rung == 0 else PERCENTS[rung - 1]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Of a worker that holds all rungs. `variables`: of a client at 100 %."""
    return {**variables, GREEN_RUNGS: TEXT}
