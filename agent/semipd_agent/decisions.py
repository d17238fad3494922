"""The last decisions and what became of them. Decides nothing; each one is logged."""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass

from semipd_agent.contract import Decision, DecisionOutcome, DecisionReason

log = logging.getLogger(__name__)

CAPACITY = 20


@dataclass
class _Entry:
    epoch: int
    decision: Decision


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
        self._entries.append(_Entry(epoch, decision))
        self.counts[DecisionReason(decision.reason)] += 1
        log.info("split %s -> %s: %s %s", decision.from_split, decision.to, decision.reason, decision.message)

    def carry_over(self, old: int, new: int) -> None:
        """The same split is sent again under another epoch (a new core)."""
        for entry in self._entries:
            if entry.epoch == old:
                entry.epoch = new

    def settle(self, epoch: int, outcome: DecisionOutcome) -> None:
        """Read-back of `epoch`: applied is final; a failure may still be mended."""
        for entry in self._entries:
            if entry.epoch == epoch and entry.decision.outcome in (DecisionOutcome.PENDING, DecisionOutcome.FAILED):
                _settle(entry, outcome)

    def newest_first(self) -> tuple[Decision, ...]:
        return tuple(e.decision for e in reversed(self._entries))


def _settle(entry: _Entry, outcome: DecisionOutcome) -> None:
    entry.decision = entry.decision.model_copy(update={"outcome": outcome})
