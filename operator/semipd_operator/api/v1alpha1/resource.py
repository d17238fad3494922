"""The whole object, and the parser that refuses what the API server would refuse, with the same words."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from semipd_operator.api.rules import RULE_ERROR, ApiModel, Rule
from semipd_operator.api.v1alpha1.spec import MAX_NAME_LENGTH, SemiPDServiceSpec
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus

GROUP = "semipd.io"
VERSION = "v1alpha1"
API_VERSION: Literal["semipd.io/v1alpha1"] = "semipd.io/v1alpha1"
KIND: Literal["SemiPDService"] = "SemiPDService"
PLURAL = "semipdservices"

_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


class InvalidSpec(ValueError):
    """The object breaks the schema or a rule; `errors` has one line for each, starting with the field's path."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


class Metadata(ApiModel):
    """The part of ObjectMeta that the operator reads."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1)
    namespace: str = ""
    uid: str = ""
    generation: int = 0
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
    def parse(cls, obj: dict[str, Any]) -> SemiPDService:
        """Raises `InvalidSpec`. As in the API server, a null stands for an absent field."""
        obj = {key: value for key, value in obj.items() if key != "status"}
        if isinstance(obj.get("spec"), dict):
            obj["spec"] = _without_nulls(obj["spec"])
        try:
            return cls.model_validate_json(json.dumps(obj), strict=True)
        except ValidationError as error:
            raise InvalidSpec([_line(dict(entry)) for entry in error.errors()]) from None


def parse_status(obj: dict[str, Any]) -> SemiPDServiceStatus:
    """The status as it stands; an empty one for a status that this version cannot read."""
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
