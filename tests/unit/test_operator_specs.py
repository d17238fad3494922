"""The specifications of tests/api/specs against Python: `semipd run` and the API server must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.api.spec_tables import assert_holds, manifest, table

from semipd_operator.api.v1alpha1.resource import InvalidSpec, SemiPDService

pytestmark = pytest.mark.unit
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("case", table("good"))
def test_python_accepts_and_defaults(case: dict[str, Any]) -> None:
    spec = SemiPDService.parse(manifest(case, "d")).spec
    assert_holds(case.get("then", {}), spec.model_dump(mode="json", by_alias=True))


@pytest.mark.parametrize("case", table("bad"))
def test_python_refuses_and_names_field_and_remedy(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec) as refused:
        SemiPDService.parse(manifest(case, "d"))
    for words in case["says"]:
        assert words in str(refused.value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_good(path: Path) -> None:
    SemiPDService.parse(yaml.safe_load(path.read_text()))


def test_there_are_twenty_of_each_and_four_examples() -> None:
    assert len(table("good")) >= 20 and len(table("bad")) >= 20 and len(EXAMPLES) >= 4
