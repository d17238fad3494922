"""What a pod's flight recorder holds (`GET /v1/recording`), decided once more by this program's own code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from semipd_agent.slo.policy import Verdict
from semipd_agent.slo.recording import replayed


@dataclass(frozen=True)
class Retold:
    seconds: float
    decided: int
    """Ticks in which the policy was asked."""
    moves: tuple[str, ...]
    """Those that were recorded, a line each."""
    other: tuple[str, ...]
    """Where today's code decides otherwise."""


def retold(lines: Iterable[bytes]) -> Retold:
    """Raises `RecordingError`."""
    decided, moves, other = 0, list[str](), list[str]()
    first: float | None = None
    last = 0.0
    for tick in replayed(lines):
        last = tick.observation.at
        first = last if first is None else first
        decided += tick.recorded is not None
        if tick.recorded is not None and tick.recorded.move is not None:
            moves.append(f"{last - first:.0f} s: {tick.split} -> {_said(tick.recorded)}")
        if not tick.same:
            other.append(f"{last - first:.0f} s: {_said(tick.now)} instead of {_said(tick.recorded)}")
    return Retold(last - (first or 0.0), decided, tuple(moves), tuple(other))


def _said(verdict: Verdict | None) -> str:
    if verdict is None:
        return "no answer"
    if verdict.move is None:
        return f"hold ({verdict.feasible_reason or ('feasible' if verdict.feasible else 'unknown')})"
    return f"{verdict.move.to} ({verdict.move.reason}: {verdict.move.message})"
