"""Typed errors of executing a plan. Torch-free."""

from __future__ import annotations


class PlanError(Exception):
    """A plan that cannot be executed; `request` names the culprit where one is known."""

    def __init__(self, message: str, request: int | None = None) -> None:
        super().__init__(message)
        self.request = request
