"""A seeded defect: one expression changed, and the tests that must find it."""

from __future__ import annotations

from dataclasses import dataclass

ENGINE, AGENT = "engine/semipd_engine", "agent/semipd_agent/partitioner/mps"


@dataclass(frozen=True)
class Defect:
    kind: str
    file: str
    right: str
    """Occurs once in the file."""
    wrong: str
    tests: str
    """pytest's arguments."""

    @property
    def key(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def name(self) -> str:
        return f"`{self.right.strip()}` → `{self.wrong.strip() or 'nothing'}`".replace("\n", " ")


def of(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Defect]:
    return [Defect(kind, file, right, wrong, tests) for kind, right, wrong in changes]
