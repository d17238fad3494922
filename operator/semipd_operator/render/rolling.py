"""What rolls a pod: a change of `model`, `engine`, `podTemplate` or the Secret of the API keys, by whoever writes the
specification, and nothing else.

The Deployment keeps the template that was rendered and a `Record` of the specification that it was rendered from. A new
operator or CRD may bring other defaults, fields and renderings; they are no change of the specification, so they wait
for the next one. It knows no field of the resource.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter

from semipd_agent.contract import apart
from semipd_operator.api.v1alpha1.resource import SemiPDService

_ROLLING = ("model", "engine", "pod_template")
ROLLING_FIELDS = ("model", "engine", "podTemplate", "service.apiKeySecretRef")
_JSON: TypeAdapter[Any] = TypeAdapter(Any)
_ABSENT = object()


@dataclass(frozen=True)
class Record:
    """The rolling part of one generation, each field by its path, e.g. ``engine.maxNumSeqs``."""

    generation: int
    values: Mapping[str, Any]
    explicit: frozenset[str]
    """The paths whose value was not the default of the version that made the record."""
    uid: str = ""
    """Of the service whose generation it is; empty: a record of an older version."""

    @classmethod
    def of(cls, service: SemiPDService) -> Record:
        leaves = [leaf for name in _ROLLING for leaf in _leaves(service.spec, name, "")]
        leaves += _leaves(service.spec.service, "api_key_secret_ref", "service")
        return cls(
            service.metadata.generation,
            {path: value for path, value, _ in leaves},
            frozenset(path for path, _, default in leaves if not default),
            service.metadata.uid,
        )

    @classmethod
    def parse(cls, text: str) -> Record | None:
        """None for what is no record: someone removed or damaged it."""
        try:
            read = json.loads(text)
            uid = str(read.get("uid", ""))
            return cls(int(read["generation"]), dict(read["values"]), frozenset(read["explicit"]), uid)
        except (KeyError, TypeError, ValueError):
            return None

    def text(self) -> str:
        content = {"generation": self.generation, "values": self.values, "explicit": sorted(self.explicit)}
        whose = {"uid": self.uid} if self.uid else {}
        return json.dumps(content | whose, sort_keys=True, separators=(",", ":"))

    def changed(self, now: Record) -> bool:
        """Whether the specification was changed since."""
        if self.generation == now.generation and not apart(self.uid, now.uid):
            return False
        for path, value in now.values.items():
            before = self.values.get(path, _ABSENT)
            explicit = path in now.explicit
            if before == value or (before is _ABSENT and not explicit):
                continue
            # Default then and default now, and yet not equal: the default was changed, not the specification.
            if before is _ABSENT or explicit or path in self.explicit:
                return True
        return any(now.covers(path) for path in self.explicit - set(now.values))

    def followed_by(self, now: Record) -> Record:
        """The record of `now` with what this version does not know kept as it was, for the version that does."""
        foreign = {path for path in self.values if path not in now.values and not now.covers(path)}
        return Record(
            now.generation,
            {**now.values, **{path: self.values[path] for path in foreign}},
            now.explicit | (self.explicit & foreign),
            now.uid,
        )

    def covers(self, path: str) -> bool:
        """Whether an object above the path is known, and was left out as a whole."""
        return any(path.startswith(f"{known}.") for known in self.values)


def _leaves(model: BaseModel, name: str, above: str) -> Iterator[tuple[str, Any, bool]]:
    """(path, value, whether it is the default) of a field and of all below it."""
    field = type(model).model_fields[name]
    value = getattr(model, name)
    path = f"{above}.{field.alias or name}".lstrip(".")
    if isinstance(value, BaseModel):
        if not isinstance(field.default, BaseModel):  # that it is there at all is said, too
            yield path, {}, False
        for below in type(value).model_fields:
            yield from _leaves(value, below, path)
    else:
        default = not field.is_required() and value == field.get_default(call_default_factory=True)
        yield path, _JSON.dump_python(value, mode="json", by_alias=True), default
