"""The one error of whatever reads, sizes or loads a model. Torch-free."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be used as it is. `reason` is one CamelCase word for machines, the message is for people.

    `may_pass`: by itself, as when others give memory back. Nothing else is tried again before its files have changed.
    """

    def __init__(self, reason: str, message: str, may_pass: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.may_pass = may_pass
