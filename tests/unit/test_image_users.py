"""The user of each image is the one that its pods ask for: else files of the image and of the pod have two owners."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from semipd_operator.settings import ENGINE_USER as USER

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CHART_USER = re.compile(r"{{- \$user := (\d+) }}")


def image_user(name: str) -> int:
    """USER of the image's target, which must also be the user and the group that the base stage makes."""
    text = (ROOT / "images/Containerfile").read_text()
    stage = text.partition(f" AS {name}\n")[2].partition("\nFROM ")[0]
    (user,) = re.findall(r"^USER (\d+):\1$", stage, re.MULTILINE)
    assert re.search(rf"'semipd:x:{user}:' >> /etc/group", text)
    assert re.search(rf"'semipd:x:{user}:{user}::.*' >> /etc/passwd", text)
    return int(user)


def test_the_chart_runs_the_operator_as_its_image_does() -> None:
    helpers = (ROOT / "charts/semipd-operator/templates/_helpers.tpl").read_text()
    assert CHART_USER.findall(helpers) == [str(image_user("operator"))]
    assert image_user("engine") == image_user("operator"), "the doctor runs the engine's image under the same helper"
    for template in (ROOT / "charts/semipd-operator/templates").rglob("*.yaml"):
        assert "runAsUser" not in template.read_text(), f"{template.name}: the helper podSecurity has it"


def test_the_pods_run_the_engine_as_its_image_does() -> None:
    assert image_user("engine") == USER
