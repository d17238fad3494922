"""docs/gpu/assumptions.md: what the GPU path takes for granted, who notices if it is not so, and what happens then.

The list is data: the unit tests hold each name in it against the code, and each refusal against the test that provokes
it. An assumption that nothing checks while serving says so.
"""

from __future__ import annotations

from hack.generate.assumptions import engine, sharing
from hack.generate.assumptions.assumption import Assumption

ASSUMPTIONS: tuple[Assumption, ...] = (*sharing.ROWS, *engine.ROWS)
DETECTED, OWED = "Noticed while serving, and provoked by a test here", "Owed: only a GPU can answer"


def proved(one: Assumption) -> bool:
    """Is there a test here that makes it false?"""
    return one.falsified_by.startswith("test_")


def assumptions() -> str:
    lines = [
        "# What the GPU path takes for granted",
        "",
        "<!-- made by `make crd` from hack/generate/assumptions -->",
        "",
        "**Not executed on a GPU yet.** Each line is a claim about hardware, driver, MPS, IPC or torch. *Detector* is",
        "the code that notices while a pod serves, *outcome* what users see then: a refusal by name, or an honest",
        "none.",
    ]
    for title, wanted in ((DETECTED, True), (OWED, False)):
        last = "test" if wanted else "where it is looked at"
        lines += ["", f"## {title}", "", f"| area | claim | source | detector | outcome | {last} |", "|" + "---|" * 6]
        for one in ASSUMPTIONS:
            if proved(one) is wanted:
                detector = f"`{one.detector.partition(':')[2]}`" if one.detector else "none"
                where = f"`{one.falsified_by}`" if wanted else one.falsified_by
                lines.append(f"| {one.area} | {one.claim} | {one.source} | {detector} | {one.outcome} | {where} |")
    return "\n".join(lines) + "\n"
