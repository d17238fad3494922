"""The specifications of tests/api/specs against Python: `semipd run` and the API server must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from semipd_operator.api.v1alpha1.resource import InvalidSpec, SemiPDService

pytestmark = pytest.mark.unit
SPECS = Path(__file__).resolve().parents[1] / "api" / "specs"
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))


def table(name: str) -> list[Any]:
    return [pytest.param(case, id=case["name"][:40]) for case in yaml.safe_load((SPECS / f"{name}.yaml").read_text())]


def manifest(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "semipd.io/v1alpha1",
        "kind": "SemiPDService",
        "metadata": {"name": case["name"], "namespace": "d"},
        "spec": case["spec"],
    }


def assert_holds(part: Any, whole: Any, path: str = "spec") -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            assert_holds(value, whole[key], f"{path}.{key}")
    else:
        assert whole == part, path


@pytest.mark.parametrize("case", table("good"))
def test_python_accepts_and_defaults(case: dict[str, Any]) -> None:
    spec = SemiPDService.parse(manifest(case)).spec
    assert_holds(case.get("then", {}), spec.model_dump(mode="json", by_alias=True))


@pytest.mark.parametrize("case", table("bad"))
def test_python_refuses_and_names_field_and_remedy(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec) as refused:
        SemiPDService.parse(manifest(case))
    for words in case["says"]:
        assert words in str(refused.value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_good(path: Path) -> None:
    SemiPDService.parse(yaml.safe_load(path.read_text()))


def test_there_are_twenty_of_each_and_four_examples() -> None:
    assert len(table("good")) >= 20 and len(table("bad")) >= 20 and len(EXAMPLES) >= 4
