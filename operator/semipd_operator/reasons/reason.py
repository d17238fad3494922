"""A reason, and what stands beside it in the documentation: where it is declared, it is explained."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """The word that a condition carries. Those of one subject are a class; the word alone is its value, and API."""

    status: str
    """Of the condition: True, False or Unknown, or several with commas."""
    meaning: str
    remedy: str
    """What to do about it; empty: nothing, or nothing is known."""

    def __new__(cls, word: str, status: str = "", meaning: str = "", remedy: str = "") -> Self:
        one = str.__new__(cls, word)
        one._value_ = word
        one.status, one.meaning, one.remedy = status, meaning, remedy
        return one

    @property
    def reason(self) -> Self:
        """As an `Entry` has it."""
        return self


@dataclass(frozen=True)
class Entry:
    """A reason as one condition has it, where it does not mean the same in all."""

    reason: Reason
    status: str
    meaning: str
    remedy: str = ""
