"""What others have added to an object of ours: an apply takes back what we say, and leaves what only they say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from semipd_operator.settings import MANAGER

Object = dict[str, Any]
Path = tuple[str, ...]
"""Steps as ``managedFields`` has them: ``f:name``, ``k:{"name":"engine"}``, ``v:"value"``."""

_RESTARTED = "f:kubectl.kubernetes.io/restartedAt"
"""``kubectl rollout restart`` asks for one round of new pods, and for nothing that stays."""
_MOST = 4
"""Fields that are named of one manager."""


def additions(deployment: Object) -> tuple[str, ...]:
    """One line for each manager that owns fields of the specification which we do not: its name, and the fields."""
    ours: set[Path] = set()
    others: dict[str, set[Path]] = defaultdict(set)
    for entry in deployment["metadata"].get("managedFields") or []:
        spec = (entry.get("fieldsV1") or {}).get("f:spec")
        if entry.get("subresource") or not isinstance(spec, dict):
            continue
        whose = ours if entry.get("manager") == MANAGER else others[str(entry.get("manager") or "?")]
        whose.update(path for path in _leaves(spec) if _RESTARTED not in path)
    # Whoever has written all of an object owns that a part of it is there, and may have no more of that part.
    ours = {path[:steps] for path in ours for steps in range(1, len(path) + 1)}
    found = ((manager, sorted(map(_told, fields - ours))) for manager, fields in sorted(others.items()))
    return tuple(f"{manager} set {_listed(fields)}" for manager, fields in found if fields)


def _leaves(fields: Object, above: Path = ()) -> Iterator[Path]:
    for step, below in fields.items():
        if step == ".":
            continue
        deeper = {one: more for one, more in below.items() if one != "."} if isinstance(below, dict) else {}
        if deeper:
            yield from _leaves(deeper, (*above, step))
        else:
            yield (*above, step)


def _told(path: Path) -> str:
    said = "spec"
    for step in path:
        kind, _, name = step.partition(":")
        if kind == "k":
            key: Object = json.loads(name)
            said += "[" + ",".join(f"{word}={value}" for word, value in key.items()) + "]"
        else:
            said += f"[{name}]" if kind == "v" else f".{name}"
    return said


def _listed(fields: Iterable[str]) -> str:
    told = list(fields)
    more = f" and {len(told) - _MOST} more" if len(told) > _MOST else ""
    return ", ".join(told[:_MOST]) + more
