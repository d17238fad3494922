"""What a release rests on: one version everywhere, a commit for each, actions that nobody can move."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.lib.release import NoRelease, newest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [job])]


def test_one_version_everywhere() -> None:
    chart = yaml.safe_load((ROOT / "charts/semipd-operator/Chart.yaml").read_text())
    in_helms_words = version().replace(".dev0", "-dev")
    assert (chart["version"], chart["appVersion"]) == (in_helms_words, in_helms_words)
    page = (ROOT / "docs/quickstart.md").read_text()
    assert set(re.findall(r"semipd-operator-(\d.*?)\.tgz|--version (\S+)", page)) == {
        (in_helms_words, ""),
        ("", in_helms_words),
    }


def test_the_tree_is_a_release_or_on_the_way_to_the_next() -> None:
    """Two things of one version that differ would be two releases."""
    last, _ = newest((ROOT / "docs/releases.md").read_text())
    unreleased = "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text()
    assert version().endswith(".dev0") == unreleased
    number = [int(part) for part in version().removesuffix(".dev0").split(".")]
    assert number > [int(part) for part in last.split(".")] if unreleased else version() == last


def test_every_release_names_its_commit() -> None:
    text = (ROOT / "docs/releases.md").read_text()
    rows = re.findall(r"^\| (\d+\.\d+\.\d+) \| `(\w+)` \|", text, re.MULTILINE)
    assert rows and all(re.fullmatch("[0-9a-f]{40}", commit) for _, commit in rows)
    assert len({number for number, _ in rows}) == len(rows)
    assert newest(text) == rows[-1], "the one that the upgrade test starts from"
    with pytest.raises(NoRelease):
        newest(text.replace("| 0.", "| v0."))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_named_by_commit_and_rights_are_the_least(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used and all(re.search(r"@[0-9a-f]{40}$", name) or name.startswith("./") for name in used)
    assert workflow["permissions"] == {"contents": "read"}, "more is given to the job that needs it"


def test_a_release_is_tested_and_published_with_what_it_is_made_of() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert workflow["jobs"]["publish"]["needs"] == "test"
    assert workflow["jobs"]["test"]["uses"] == "./.github/workflows/ci.yml"
    commands = "\n".join(step.get("run", "") for step in steps(workflow))
    for word in ("--sbom=true", "--provenance=mode=max", "helm push", "sha256sum", "BASE_IMAGE=$base"):
        assert word in commands
    values = (ROOT / "charts/semipd-operator/values.yaml").read_text()
    assert values.count('digest: ""') == 2 and values.count("ghcr.io/semipd") == 2, "what the workflow fills in"


def test_no_expression_of_the_workflow_is_run_as_a_command() -> None:
    """${{ … }} inside `run` would let a branch's name be a script."""
    for file in WORKFLOWS:
        for step in steps(yaml.safe_load(file.read_text())):
            assert "${{" not in step.get("run", ""), (file.name, step.get("name"))
