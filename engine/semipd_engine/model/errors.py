"""Typed errors of the model side. Torch-free."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be used as it is. `reason` is one CamelCase word for machines, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PlanError(Exception):
    """A plan that cannot be executed; `request` names the culprit where one is known."""

    def __init__(self, message: str, request: int | None = None) -> None:
        super().__init__(message)
        self.request = request
