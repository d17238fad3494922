"""What README and docs name is there: files, links, flags, make targets, metrics, fields; a newcomer's questions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from semipd_engine.contract import EngineOptions

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tests/gpu/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PLACES = ("", "docs", "bench", "tests/gpu", "engine", "agent", "operator", "cli")
PACKAGES = ("engine/semipd_engine", "agent/semipd_agent", "operator/semipd_operator", "cli/semipd_cli")
"""Below which a page may name a file, beside its own folder."""
OF_OTHERS = {"--enable-pdmux", "--data", "--patch", "--from-file", "--from-literal", "--kube-version", "--skip-tests"}
OF_OTHERS |= {"--reset-then-reuse-values", "--take-ownership"}
"""Flags of SGLang, curl, kubectl and helm that no code of ours uses."""
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def sources() -> str:
    """All that may define a flag or a metric."""
    rooms = ("operator", "agent", "engine", "cli", "bench", "hack", "images", "e2e", "charts", "tests/gpu")
    files = [file for room in rooms for file in (ROOT / room).rglob("*") if file.is_file()]
    kept = (".py", ".yaml", ".tpl", ".txt", "")
    texts = [file.read_bytes() for file in files if file.suffix in kept and "__pycache__" not in file.parts]
    return b"\n".join([*texts, (ROOT / "Makefile").read_bytes(), (ROOT / "tests/tiers.py").read_bytes()]).decode()


def named_files(text: str) -> set[str]:
    """Words in backticks that are the path of one file; what is only made by a run is in `out`."""
    words = re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|yaml|yml|json|svg|toml|gz))`", text)
    return {word for word in words if not word.startswith("out/")}


@pages
def test_each_relative_link_and_each_file_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"\w+:", link)]
    assert [link for link in links if not (page.parent / link).exists()] == []
    places = [page.parent, *(ROOT / place for place in (*PLACES, *PACKAGES))]
    assert [name for name in named_files(text) if not any((place / name).is_file() for place in places)] == []


@pages
def test_each_flag_is_one_of_ours_or_known_to_be_of_others(page: Path) -> None:
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", page.read_text())) - OF_OTHERS
    ours = {f"--{name.replace('_', '-')}" for name in EngineOptions.model_fields}
    assert [flag for flag in flags - ours if not re.search(rf"{flag}(?![a-z-])", sources())] == []


@pages
def test_each_make_target_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^\s*|`)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE)
    assert set(named) <= targets


@pages
def test_each_metric_is_there(page: Path) -> None:
    named = set(
        re.findall(r"\b(semipd_[a-z_]+_(?:total|ratio|seconds|percent|bytes|blocks)|vllm:[a-z_]+)\b", page.read_text())
    )
    series = re.compile("_(bucket|sum|count|created)$")
    assert [name for name in named if name not in sources() and series.sub("", name) not in sources()] == []


@cache
def schema() -> dict[str, Any]:
    (crd,) = (ROOT / "crds").glob("*.yaml")
    found: dict[str, Any] = yaml.safe_load(crd.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def is_field(path: str) -> bool:
    node = schema()
    for name in path.replace("[]", "").split("."):
        if node.get("x-kubernetes-preserve-unknown-fields"):
            return True  # Kubernetes' own, as a pod's
        while node.get("type") == "array":
            node = node["items"]
        node = node.get("properties", {}).get(name) or node.get("additionalProperties")
        if not isinstance(node, dict):
            return False
    return True


@pages
def test_each_field_is_in_the_schema(page: Path) -> None:
    assert is_field("spec.partition.prefillPercent") and not is_field("spec.partition.prefill")
    words = re.findall(r"(?<![\w./])((?:spec|status)(?:\.[a-zA-Z]+(?:\[\])?)+)", page.read_text())
    assert [word for word in words if not is_field(word)] == []


def questions() -> Iterator[Any]:
    text = (ROOT / "docs/design/0001-rooms.md").read_text()
    for row in re.findall(r"^\| ([^|]+\?) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE):
        yield pytest.param(*(re.findall(r"`([^`]+)`", cell) for cell in row[1:]), id=row[0][:40])


def defined(source: str) -> set[str]:
    """Functions and classes, and methods with their class before them."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            inner = [each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {node.name, *(f"{node.name}.{name}" for name in inner)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return found


@pytest.mark.parametrize(("files", "symbols"), list(questions()))
def test_a_newcomers_question_leads_to_code_that_is_there(files: list[str], symbols: list[str]) -> None:
    assert files and symbols
    assert set(symbols) <= set().union(*(defined((ROOT / file).read_text()) for file in files))


def test_there_are_ten_questions_at_least() -> None:
    assert len(list(questions())) >= 10
