"""The last decisions and what became of them. Decides nothing; each one is logged."""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime

from semipd_agent import contract
from semipd_agent.contract import Decision, DecisionOutcome, DecisionReason
from semipd_agent.slo.policy import Move
from semipd_engine.contract import Split

log = logging.getLogger(__name__)

CAPACITY = 20
REALISED_SECONDS = 60.0
"""After so long in force a decision's prediction is held against what came ..."""
MOST_SECONDS = 120.0
"""... and after so long no more: fewer than `LEAST_REQUESTS` came of those that are kept for it."""
LEAST_REQUESTS = 10


@dataclass
class _Entry:
    epoch: int
    decision: Decision
    foretold: bool
    """It predicted something that nothing was held against yet."""
    applied_at: float | None = None
    """CLOCK_MONOTONIC seconds."""


class DecisionLog:
    """Ring of decisions by the epoch that carries them out, newest last."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque(maxlen=CAPACITY)
        self.counts: Counter[DecisionReason] = Counter()

    def record(self, epoch: int, decision: Decision) -> None:
        """Add a decision; one that is still pending will never be carried out."""
        for entry in self._entries:
            if entry.decision.outcome is DecisionOutcome.PENDING:
                _settle(entry, DecisionOutcome.SUPERSEDED)
        self._entries.append(_Entry(epoch, decision, foretold=decision.predicted is not None))
        self.counts[DecisionReason(decision.reason)] += 1
        log.info("split %s -> %s: %s %s", decision.from_split, decision.to, decision.reason, decision.message)

    def carry_over(self, old: int, new: int) -> None:
        """The same split is sent again under another epoch (a new core)."""
        for entry in self._entries:
            if entry.epoch == old:
                entry.epoch = new

    def settle(self, epoch: int, outcome: DecisionOutcome, now: float = 0.0) -> None:
        """Read-back of `epoch`: applied is final; a failure may still be mended. `now` is CLOCK_MONOTONIC seconds."""
        for entry in self._entries:
            if entry.epoch == epoch and entry.decision.outcome in (DecisionOutcome.PENDING, DecisionOutcome.FAILED):
                _settle(entry, outcome)
                if outcome is DecisionOutcome.APPLIED:
                    entry.applied_at = now

    def due(self, now: float) -> float | None:
        """Since when the last decision is in force, where it predicted something that can be held against it now."""
        entry = self._entries[-1] if self._entries else None
        if entry is None or not entry.foretold or entry.applied_at is None:
            return None
        return entry.applied_at if REALISED_SECONDS <= now - entry.applied_at <= MOST_SECONDS else None

    def targets_changed(self) -> None:
        """What was predicted was of other targets: it is held against nothing."""
        for entry in self._entries:
            entry.foretold = False

    def realise(self, percent: float, requests: int, seconds: float) -> None:
        """What the last decision really gave: the requests that came since it is in force."""
        entry = self._entries[-1]
        percent = round(percent, 1)
        said = f"{entry.decision.message}; {percent} % of {requests} were in its first {seconds:.0f} s"
        update = {"realised_attainment_percent": percent, "message": said}
        entry.decision, entry.foretold = entry.decision.model_copy(update=update), False

    def newest_first(self) -> tuple[Decision, ...]:
        return tuple(e.decision for e in reversed(self._entries))


def decision(before: Split, move: Move, time: datetime) -> Decision:
    """A move of the split that is `before`, as it is told."""
    return Decision(
        time=time,
        from_split=wire(before),
        to=wire(move.to),
        reason=move.reason,
        metric=move.metric,
        observed_milliseconds=_milliseconds(move.observed_seconds),
        target_milliseconds=_milliseconds(move.target_seconds),
        message=move.message,
        predicted=move.predicted,
    )


def wire(split: Split) -> contract.Split:
    """The engine's split in the agent's contract."""
    return contract.Split(prefill_percent=split.prefill, decode_percent=split.decode, mixed_tokens=split.mixed_tokens)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _settle(entry: _Entry, outcome: DecisionOutcome) -> None:
    entry.decision = entry.decision.model_copy(update={"outcome": outcome})
