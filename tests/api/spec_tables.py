"""The specifications of `specs/`, good and bad: the API server and `semipd run` (Python) must agree about each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

SPECS = Path(__file__).parent / "specs"


def table(name: str) -> list[Any]:
    """The cases of one file, as parameters of a test."""
    return [pytest.param(case, id=case["name"][:40]) for case in yaml.safe_load((SPECS / f"{name}.yaml").read_text())]


def manifest(case: dict[str, Any], namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "semipd.io/v1alpha1",
        "kind": "SemiPDService",
        "metadata": {"name": case["name"], "namespace": namespace},
        "spec": case["spec"],
    }


def assert_holds(part: Any, whole: Any, path: str = "spec") -> None:
    """All of `part` is in `whole`."""
    if isinstance(part, dict):
        for key, value in part.items():
            assert key in whole, f"{path}.{key} is absent"
            assert_holds(value, whole[key], f"{path}.{key}")
    else:
        assert whole == part, path
