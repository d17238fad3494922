"""The interface between the control loop and a policy that moves the split. Holds no policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from semipd_agent.contract import Bounds, DecisionReason, Prediction
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import Split

Metric = Literal["ttft", "tpot"]


@dataclass(frozen=True)
class Move:
    """A change of the split and the evidence for it (seconds)."""

    to: Split
    reason: DecisionReason
    metric: Metric | None = None
    observed_seconds: float | None = None
    target_seconds: float | None = None
    message: str = ""
    predicted: Prediction | None = None
    """What the new split is expected to give; None: the policy has no such model."""


@dataclass(frozen=True)
class Verdict:
    """What a policy makes of one tick. `feasible` is None while it cannot tell."""

    move: Move | None = None
    feasible: bool | None = None
    feasible_reason: str = ""
    message: str = ""
    """Why nothing is decided, for people."""


class SplitPolicy(Protocol):
    def observe(self, evidence: Evidence, split: Split, bounds: Bounds, now: float) -> Verdict:
        """Called once a second while `split` is proved to be in force. `now` is CLOCK_MONOTONIC seconds.

        A returned move is carried out: the next call brings the new split. A policy learns of changes made by others
        in the same way.
        """


def ask(
    policy: SplitPolicy, evidence: Evidence, split: Split, bounds: Bounds, grid: Grid, now: float
) -> tuple[Verdict, Exception | None]:
    """One tick. A policy that raises, or answers nonsense, moves nothing: the split holds, and the verdict says why."""
    try:
        verdict = policy.observe(evidence, split, bounds, now)
        if verdict.move is not None and clamp(verdict.move.to, bounds, grid) != verdict.move.to:
            raise ValueError(f"{verdict.move.to} is not within the bounds and rungs")
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return Verdict(feasible_reason="PolicyFailed", message=f"the policy failed ({said}); the split holds"), error
    return verdict, None


def clamp(split: Split, bounds: Bounds, grid: Grid = Grid()) -> Split:
    """The nearest split of the grid within the bounds. No isolation is within them where no limit at all is."""
    if split.mixed_tokens and unlimited(bounds):
        return split
    return Split(
        prefill=grid.bounded(split.prefill, bounds.min_prefill_percent, bounds.max_prefill_percent),
        decode=grid.bounded(split.decode, bounds.min_decode_percent, bounds.max_decode_percent),
    )


def isolated(split: Split) -> Split:
    return Split(prefill=split.prefill, decode=split.decode)


def unlimited(bounds: Bounds) -> bool:
    return bounds.max_prefill_percent == bounds.max_decode_percent == 100


def prefill_share(split: Split) -> float:
    """Prefill's part (0–1) of the device while both phases are busy: x / (x + y), or x / 100 where x + y < 100."""
    return split.prefill / max(100, split.prefill + split.decode)


def decode_share(split: Split) -> float:
    """Decode's part (0–1) of the device while both phases are busy."""
    return split.decode / max(100, split.prefill + split.decode)
