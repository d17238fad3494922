"""Which form the demo takes: decided before anything starts, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.demo.prerequisites import Probe, Refused, decide, namespaces

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "e2e" / "demo" / "prerequisites.py"


def met() -> str | None:
    return None


def missing(what: str) -> Probe:
    return lambda: what


@pytest.mark.parametrize("choice", ["", "local"])
def test_local_where_everything_is_there_else_embedded_with_the_first_reason(choice: str) -> None:
    assert decide(choice, [met, met], []) == ("local", None)
    assert decide(choice, [met, missing("no root"), missing("no Go")], []) == ("embedded", "no root")


def test_probes_after_the_first_failure_do_not_run() -> None:
    def never() -> str | None:
        raise AssertionError("this probe may install things")

    assert decide("", [missing("no root"), never], [])[0] == "embedded"
    assert decide("none", [never], [never]) == ("embedded", None)


def test_existing_is_never_replaced_by_another_form() -> None:
    assert decide("existing", [missing("no root")], [met]) == ("existing", None)
    with pytest.raises(Refused, match="CLUSTER=existing: no kubectl"):
        decide("existing", [met], [missing("no kubectl")])


def test_an_unknown_choice_names_the_known_ones() -> None:
    with pytest.raises(Refused, match="local, existing or none"):
        decide("kind", [met], [met])


def script(choice: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # -S: no site-packages, as on a machine where nothing is installed yet.
    command = [sys.executable, "-s", "-S", str(SCRIPT), choice]
    env = os.environ | {"PYTHONPATH": "hack/cluster"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


def test_the_program_needs_the_standard_library_only() -> None:
    answer = script("none")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "embedded\n", "")


def test_what_cannot_be_met_is_said_in_one_line() -> None:
    answer = script("existing", REGISTRY="")
    assert answer.returncode == 2 and "REGISTRY=" in answer.stderr and answer.stderr.count("\n") == 1


def test_without_unshare_there_are_no_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert namespaces() == "this machine allows no new Linux namespaces"
