"""The judgement behind one condition, before it gets a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import cast

from semipd_operator.api.v1alpha1.status import Condition, ConditionStatus, SemiPDServiceStatus
from semipd_operator.reasons import remedy
from semipd_operator.status import words
from semipd_operator.status.observed import Problem


@dataclass(frozen=True)
class Verdict:
    type: str
    status: str
    reason: str
    message: str = ""
    detail: str = ""
    """The object at fault, shown beside the reason in ``kubectl get``."""
    passing: bool = False
    """Not True, and only for a moment, as an order is on its way: no reason to take Ready back."""
    remedy: str = ""
    """What to do about it, where that of the reason does not fit."""

    @classmethod
    def of(cls, type: str, problem: Problem, message: str = "") -> Verdict:
        """False for the problem, in its own words or in `message`."""
        said = message or problem.message
        return cls(type, "False", problem.reason, said, problem.detail, problem.for_now, problem.remedy)

    def condition(self, previous: SemiPDServiceStatus, now: datetime, generation: int) -> Condition:
        """lastTransitionTime moves only when the status does."""
        before = previous.condition(self.type)
        since = before.last_transition_time if before and before.status == self.status else now.replace(microsecond=0)
        return Condition(
            type=self.type,
            status=cast(ConditionStatus, self.status),
            reason=words.reason(self.reason),
            message=self._told(),
            last_transition_time=since,
            observed_generation=generation,
        )

    def _told(self) -> str:
        """Cause and remedy: whoever has nothing but ``kubectl describe`` needs both."""
        what = self.remedy or remedy(self.type, self.reason)
        what = what if self.status == "False" and not self.passing else ""
        if not what:
            return words.told(self.message)
        tail = f"Remedy: {what}"
        cause = words.told(self.message, words.MAX_MESSAGE - len(tail) - 2)
        if cause and not cause.endswith((".", "!", "?", "…")):
            cause += "."
        return f"{cause} {tail}".lstrip()
