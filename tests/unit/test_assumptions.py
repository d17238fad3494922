"""The ledger of what the GPU path takes for granted: each name in it is one of the code, each proof a real test."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from hack.generate.assumptions import ASSUMPTIONS, Assumption, proved

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PROVED = [one for one in ASSUMPTIONS if proved(one)]


@pytest.mark.parametrize("one", [one for one in ASSUMPTIONS if one.detector], ids=lambda one: one.claim[:40])
def test_a_detector_is_code_that_ships(one: Assumption) -> None:
    module, _, name = one.detector.partition(":")
    assert module.startswith(("semipd_engine.", "semipd_agent."))
    found: object = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize("one", PROVED, ids=lambda one: one.claim[:40])
def test_a_proof_is_a_test_that_sees_the_outcome(one: Assumption) -> None:
    name = one.falsified_by
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if f"def {name}(" in path.read_text()]
    assert len(files) == 1, f"{name} is in {files}"
    source = files[0].read_text()
    module = ast.parse(source)
    test = next(node for node in module.body if getattr(node, "name", "") == name)
    assert isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef)
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    tables = [n for n in module.body if isinstance(n, ast.AnnAssign) and getattr(n.target, "id", "") in names]
    seen = "\n".join(str(ast.get_source_segment(source, part)) for part in (test, *test.decorator_list, *tables))
    assert (one.word or one.outcome) in seen
    assert one.detector, "what is proved has somebody who notices"


def test_what_nobody_can_prove_here_points_at_the_check() -> None:
    from tests.gpu.check.catalogue import PARTS

    owed = [one for one in ASSUMPTIONS if not proved(one)]
    names = [part.name for part in PARTS]
    for one in owed:
        parts = [word.strip("`,").rstrip("*") for word in one.falsified_by.split() if word.startswith("`")]
        assert parts and all(any(name.startswith(part) for name in names) for part in parts), one.claim


def test_every_gate_before_a_worker_serves_is_in_the_ledger() -> None:
    """`UnfitError` is how a worker says that it cannot serve: a new reason is a new assumption."""
    reasons = set()
    for path in (ROOT / "engine/semipd_engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UnfitError":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    reasons.add(str(first.value))
    assert {"WarmUpFailed", "WrongKernels", "WrongProducts"} <= reasons, "they are found"
    assert reasons - {"WarmUpFailed"} <= {one.outcome for one in ASSUMPTIONS}, "WarmUpFailed is the last of all nets"
    rungs = (ROOT / "docs/design/0005-rungs-and-cuda.md").read_text()
    assert all(f"`{reason}`" in rungs for reason in reasons)
