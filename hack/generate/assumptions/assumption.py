"""A row of the list of assumptions, and the name that rows are written with."""

from __future__ import annotations

from dataclasses import dataclass

MPS = "semipd_agent.partitioner.mps"


@dataclass(frozen=True)
class Assumption:
    area: str
    claim: str
    source: str
    detector: str
    """``module:name`` of the code that notices while a pod runs; empty: none."""
    outcome: str
    """The refusal's name (a reason, or an exception), or a word on what is lost."""
    falsified_by: str
    """Name of the test that makes the claim false and sees the outcome, whatever its file; or where a GPU will tell."""
    word: str = ""
    """The outcome as that test names it; empty: in the same word."""
