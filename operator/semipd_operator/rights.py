"""What RBAC does not let us list or watch (403): told in the log with the rule that is missing, and when it is granted.

Nothing ends for it. A cluster that is upgraded, or whose rights are being edited, refuses for a minute or two what it
grants again, and a new process would be refused, too. Whoever can mend it reads the log, where Kopf's own line names an
address. It asks for nothing itself: whoever asked says what the answer was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from semipd_operator.informer import KINDS
from semipd_operator.metrics import RIGHTS_MISSING

log = logging.getLogger(__name__)

_TOLD_AGAIN_SECONDS = 600.0
_REFUSED, _GRANTED = 403, 200


@dataclass(frozen=True)
class _Right:
    kind: str
    verb: str
    namespace: str


@dataclass
class _Refused:
    since: float
    told: float


class Rights:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[_Right, _Refused] = {}

    def answered(self, kind: str, verb: str, namespace: str, status: int) -> None:
        """`verb`: list or watch. `namespace`: empty for all. `status`: HTTP's; any other than 200 and 403 says nothing
        about rights."""
        right, now = _Right(kind, verb, namespace), self._clock()
        if status == _REFUSED:
            known = self._refused.get(right)
            if known is None or now - known.told >= _TOLD_AGAIN_SECONDS:
                self._refused[right] = _Refused(known.since if known else now, now)
                log.warning("%s", _refusal(right))
        elif status == _GRANTED and (known := self._refused.pop(right, None)):
            log.info("%s is granted again, after %.0f s", _told(right), now - known.since)
        self._count(kind, verb)

    def forget(self) -> None:
        """Who asks no more is refused nothing."""
        refused, self._refused = self._refused, {}
        for one in refused:
            self._count(one.kind, one.verb)

    def _count(self, kind: str, verb: str) -> None:
        missing = sum((one.kind, one.verb) == (kind, verb) for one in self._refused)
        RIGHTS_MISSING.labels(KINDS[kind][1], verb).set(missing)


def _refusal(right: _Right) -> str:
    api_version, plural = KINDS[right.kind]
    group = api_version.rpartition("/")[0]
    named = group or '""'
    rule = f"{{apiGroups: [{named}], resources: [{plural}], verbs: [list, watch]}}"
    where = f"a Role in {right.namespace}" if right.namespace else "a ClusterRole"
    return (
        f"RBAC refuses {_told(right)} (403): changes of {plural} are not heard until {where} grants it to the "
        f"operator's ServiceAccount, as the chart's does: {rule}. It is tried again by itself, every 15 s at last."
    )


def _told(right: _Right) -> str:
    api_version, plural = KINDS[right.kind]
    group = api_version.rpartition("/")[0]
    where = f"in namespace {right.namespace}" if right.namespace else "in all namespaces"
    return f"{right.verb} {plural}{'.' if group else ''}{group} {where}"
