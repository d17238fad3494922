"""The status of a specification that this version of the operator cannot read."""

from __future__ import annotations

from datetime import datetime

from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.reasons import ConditionType, Reason
from semipd_operator.status.verdict import Verdict


def rejected(before: SemiPDServiceStatus, generation: int, message: str, now: datetime) -> SemiPDServiceStatus:
    """What was shown before, with SpecAccepted and Ready False."""
    verdicts = [
        Verdict(kind, "False", Reason.INVALID_SPEC, message)
        for kind in (ConditionType.SPEC_ACCEPTED, ConditionType.READY)
    ]
    kept = [condition for condition in before.conditions if condition.type not in {v.type for v in verdicts}]
    conditions = (*kept, *(verdict.condition(before, now, generation) for verdict in verdicts))
    return before.model_copy(update={"reason": Reason.INVALID_SPEC.value, "conditions": conditions})
