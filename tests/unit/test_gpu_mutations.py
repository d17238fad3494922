"""The seeded defects of the GPU path fit the source as it is, and their tests are there."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest

from bench.gpu.defects import DEFECTS, Defect
from bench.gpu.mutations import mutated

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def test_there_are_some_of_every_kind() -> None:
    assert len(DEFECTS) == len({one.key for one in DEFECTS})
    kinds = {"mask", "stride", "block table", "slot -1", "offset", "route", "MPS environment", "padding", "seed"}
    kinds |= {"order of ends"}
    assert kinds <= {one.kind for one in DEFECTS}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda one: one.right[:40])
def test_a_defect_changes_the_source_as_it_is(defect: Defect) -> None:
    source = (ROOT / defect.file).read_text()
    changed = mutated(source, defect)
    assert changed != source
    ast.parse(changed)
    assert all((ROOT / word).exists() for word in shlex.split(defect.tests) if word.startswith("tests/"))
