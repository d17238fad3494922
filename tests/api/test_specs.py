"""The same specifications against the real API server as against Python (tests/unit/test_operator_specs.py)."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.spec_tables import assert_holds, manifest, table

pytestmark = pytest.mark.api


@pytest.mark.parametrize("case", table("good"))
def test_the_api_server_accepts_and_defaults(crd: Any, case: dict[str, Any], namespace: str) -> None:
    crd.apply(manifest(case, namespace))
    live = crd.get("spd", case["name"], namespace)
    assert_holds(case.get("then", {}), live["spec"])


@pytest.mark.parametrize("case", table("bad"))
def test_the_api_server_refuses_and_names_field_and_remedy(crd: Any, case: dict[str, Any], namespace: str) -> None:
    answer = crd.apply(manifest(case, namespace), ok=False)
    assert answer.returncode != 0, "accepted"
    for words in case["says"]:
        assert words in answer.stderr
    for words in case.get("silent", ()):
        assert words not in answer.stderr, "all rules are tried, and only the broken ones are told"


def test_there_are_no_defaults_for_mode_and_shares(crd: Any, namespace: str) -> None:
    crd.apply(manifest({"name": "bare", "spec": {"model": {"uri": "file:///m"}}}, namespace))
    partition = crd.get("spd", "bare", namespace)["spec"]["partition"]
    assert not {"mode", "prefillPercent", "decodePercent"} & set(partition)
