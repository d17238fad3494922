"""What the installed CRD, of an older release, does not declare of a status: left out of what is written, for a while.

Server-side apply refuses a status whole for one field that is not declared: from then on it would show what is old. A
merge patch would drop such fields by itself, and silently, but take over from apply what owns the status, and with it
what takes a field back that is no longer said.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from semipd_operator.answers import ApiRefused, Object

Path = tuple[str, ...]
"""Names from the status down; a list on the way is all of its elements."""

AGAIN_SECONDS = 60.0
"""After so long the whole is tried again: the CRD may have been upgraded."""
_UNDECLARED = re.compile(r"\.status((?:\.\w+|\[[^]]*\])+): field not declared in schema")


class OlderCRD:
    """One for all services, as the CRD is. What one element of a list may not have, none has."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._fields: frozenset[Path] = frozenset()
        self._until = 0.0

    @property
    def fields(self) -> frozenset[Path]:
        """Not declared, as far as is known; empty once it is to be asked again."""
        return self._fields if self._clock() < self._until else frozenset()

    def learn(self, refused: ApiRefused) -> bool:
        """From the words of a refusal: they name one field of each object at a time. False: nothing new."""
        before = self.fields
        if not refused.mistyped:
            return False
        paths = (re.sub(r"\[[^]]*\]", "", path) for path in _UNDECLARED.findall(str(refused)))
        found = {tuple(path.strip(".").split(".")) for path in paths}
        if found <= before:
            return False
        if not before:
            self._until = self._clock() + AGAIN_SECONDS
        self._fields = before | found
        return True

    def forget(self) -> None:
        """It may be another CRD by now."""
        self._fields = frozenset()

    def declared(self, status: Object) -> tuple[Object, tuple[str, ...]]:
        """(what of a status the CRD knows, the fields that it lacks), as far as is known."""
        known = copy.deepcopy(status)
        lacking = [".".join(("status", *path)) for path in sorted(self.fields) if _cut(known, path)]
        return known, tuple(lacking)


def _cut(status: Object, path: Path) -> bool:
    """Whether it was there."""
    parts: list[Any] = [status]
    *above, name = path
    for one in above:
        found = [part[one] for part in parts if isinstance(part, dict) and one in part]
        parts = [element for part in found for element in (part if isinstance(part, list) else [part])]
    holders = [part for part in parts if isinstance(part, dict) and name in part]
    for part in holders:
        del part[name]
    return bool(holders)
