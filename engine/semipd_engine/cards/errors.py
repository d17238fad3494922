"""The one error of whatever reads, sizes or loads a model. Torch-free."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be used as it is. `reason` is one CamelCase word for machines, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
