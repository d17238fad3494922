"""The whole object, and the parser that refuses what the API server would refuse, with the same words."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from semipd_operator.api.rules import RULE_ERROR, STORED, ApiModel, Rule
from semipd_operator.api.v1alpha1.spec import MAX_NAME_LENGTH, SemiPDServiceSpec
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus

GROUP = "semipd.io"
VERSION = "v1alpha1"
API_VERSION: Literal["semipd.io/v1alpha1"] = "semipd.io/v1alpha1"
KIND: Literal["SemiPDService"] = "SemiPDService"
PLURAL = "semipdservices"

_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


Place = tuple[Any, ...]
"""Names of fields and indices of lists."""


class InvalidSpec(ValueError):
    """The object breaks the schema or a rule; `errors` has one line for each, starting with the field's path."""

    def __init__(self, errors: list[str], places: Sequence[tuple[Place, bool]] = ()) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors
        self.places = places
        """Of each error: the path at fault, and whether this version does not know the field at all."""


class Metadata(ApiModel):
    """The part of ObjectMeta that the operator reads."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1)
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    creation_timestamp: AwareDatetime | None = None
    deletion_timestamp: AwareDatetime | None = None


class SemiPDService(ApiModel):
    """One two-phase LLM service. ``status`` is kept apart from parsing: a wrong one must not stop the operator."""

    RULES: ClassVar = (
        Rule(
            cel=f"size(self.metadata.name) <= {MAX_NAME_LENGTH}",
            holds=lambda service: len(service.metadata.name) <= MAX_NAME_LENGTH,
            message=f"metadata.name must have at most {MAX_NAME_LENGTH} characters: the names of pods and other "
            "objects are made from it; choose a shorter one",
        ),
        Rule(
            cel=f"self.metadata.name.matches('{_NAME}')",
            holds=lambda service: re.fullmatch(_NAME, service.metadata.name) is not None,
            message="metadata.name must begin with a letter and hold lower-case letters, digits and - only: the "
            "Service has the same name",
        ),
    )

    api_version: Literal["semipd.io/v1alpha1"] = API_VERSION
    kind: Literal["SemiPDService"] = KIND
    metadata: Metadata
    spec: SemiPDServiceSpec = Field(description="What is wanted.")

    @classmethod
    def parse(cls, obj: dict[str, Any], *, stored: bool = False) -> SemiPDService:
        """Raises `InvalidSpec`. As in the API server, a null stands for an absent field. `stored`: it is what an API
        server has stored, maybe before all of the rules: see `Rule.spares_stored`."""
        obj = {key: value for key, value in obj.items() if key != "status"}
        if isinstance(obj.get("spec"), dict):
            obj["spec"] = _without_nulls(obj["spec"])
        try:
            return cls.model_validate_json(json.dumps(obj), strict=True, context={STORED: stored})
        except ValidationError as error:
            found = [dict(entry) for entry in error.errors()]
            raise InvalidSpec([_line(entry) for entry in found], [_place(entry) for entry in found]) from None


@dataclass(frozen=True)
class Reading:
    """What this version makes of an object that the CRD of another version let through."""

    service: SemiPDService
    """Without what is listed below: each counts as absent."""
    ignored: tuple[str, ...] = ()
    """Fields that this version does not know, e.g. ``spec.engine.quantization``."""
    unread: tuple[str, ...] = ()
    """Fields whose value this version cannot read."""
    errors: tuple[str, ...] = ()
    """What is wrong with each of those, as `InvalidSpec.errors`."""

    def unread_below(self, *fields: str) -> bool:
        """Whether something of spec's `fields`, or an object that holds one of them, could not be read."""
        wanted = [f"spec.{field}." for field in fields]
        return any(f"{path}.".startswith(one) or one.startswith(f"{path}.") for path in self.unread for one in wanted)


_UNKNOWN_MODEL = {"uri": "file:///unknown"}
_MOST_REPAIRS = 64


def read(obj: dict[str, Any]) -> Reading:
    """As much of the object as this version understands: for what was accepted already, by an API server.

    Raises `InvalidSpec` where nothing can be made of it.
    """
    left: dict[str, Any] = copy.deepcopy({key: value for key, value in obj.items() if key != "status"})
    ignored, unread, errors = list[str](), list[str](), list[str]()
    for _ in range(_MOST_REPAIRS):
        try:
            service = SemiPDService.parse(left, stored=True)
        except InvalidSpec as invalid:
            path, unknown = invalid.places[0]
            if not _remove(left, path):
                if path[:2] != ("spec", "model") or left["spec"].get("model") == _UNKNOWN_MODEL:
                    raise
                left["spec"]["model"] = dict(_UNKNOWN_MODEL)
            name = ".".join(map(str, path))
            if unknown:
                ignored.append(name)
            elif not any(name.startswith(one) or one.startswith(name) for one in unread):
                # Else it is missing because something of it was taken out.
                unread.append(name)
                errors.append(invalid.errors[0])
        else:
            return Reading(_named(service, obj), tuple(ignored), tuple(unread), tuple(errors))
    raise InvalidSpec(errors)


def _remove(obj: dict[str, Any], path: Place) -> bool:
    """Takes a field out, or the nearest object above it that is there; False once that would be all of spec."""
    for depth in range(len(path), 1, -1):
        above, last = path[: depth - 1], cast(Any, path[depth - 1])
        place: Any = obj
        for part in above:
            place = place.get(part) if isinstance(place, dict) else place[part] if isinstance(place, list) else None
        if last in place if isinstance(place, dict) else isinstance(place, list):
            del place[last]
            return True
    return False


def _named(service: SemiPDService, obj: dict[str, Any]) -> SemiPDService:
    """A model whose uri cannot be read is still called by it."""
    uri = (obj["spec"].get("model") or {}).get("uri")
    if service.spec.model.uri != _UNKNOWN_MODEL["uri"] or not isinstance(uri, str):
        return service
    model = service.spec.model.model_copy(update={"uri": uri})
    return service.model_copy(update={"spec": service.spec.model_copy(update={"model": model})})


def parse_status(obj: dict[str, Any]) -> SemiPDServiceStatus:
    """The status as it stands, without what this version does not know; an empty one for what is no status."""
    try:
        return SemiPDServiceStatus.model_validate_json(json.dumps(obj.get("status") or {}))
    except ValidationError:
        return SemiPDServiceStatus()


def dump_status(status: SemiPDServiceStatus) -> dict[str, Any]:
    """As it goes over the wire; absent values are left out."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _without_nulls(value: Any, path: tuple[str, ...] = ()) -> Any:
    if path == ("podTemplate", "spec"):
        return value  # opaque: a null there belongs to the merge
    if isinstance(value, dict):
        return {key: _without_nulls(item, (*path, key)) for key, item in value.items() if item is not None}
    return value


def _place(error: dict[str, Any]) -> tuple[Place, bool]:
    path = tuple(part for part in error["loc"] if not _is_branch(part))
    if error["type"] == RULE_ERROR:
        path += tuple(part for part in error["ctx"]["field"].split(".") if part)
    return path, error["type"] == "extra_forbidden"


def _line(error: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in error["loc"] if not _is_branch(part))
    match error["type"]:
        case kind if kind == RULE_ERROR:
            return f"{path}{error['ctx']['field']}: {error['ctx']['message']}".lstrip(": .")
        case "missing":
            return f"{path}: Required value"
        case "extra_forbidden":
            return f"{path}: unknown field"
        case _:
            return f"{path}: {error['msg']}"


def _is_branch(part: int | str) -> bool:
    """Pydantic names the branches of a union in the location; a field's name is never one of these."""
    return part in ("int", "str") or (isinstance(part, str) and ("[" in part or "(" in part))
