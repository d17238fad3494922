"""What the API server answers, and what it means: a refusal and its words, no answer at all, an answer that is none.

Pure. It knows no request: who asked says which places an answer has.
"""

from __future__ import annotations

from typing import Any

from kubernetes.aio.dynamic.exceptions import DynamicApiError

Object = dict[str, Any]
Places = tuple[tuple[str, ...], ...]
"""Paths of names within an answer."""


class ApiRefused(Exception):
    """The API server refused a request; `status` is the HTTP status and the message its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def for_now(self) -> bool:
        """Of the server's state, not of the request: another change came first, too many requests, trouble of its own.
        An unknown field and a value of another type come as 500, too: server-side apply cannot type the patch."""
        return self.status in (409, 429) or (self.status >= 500 and not self.mistyped)

    @property
    def outdated(self) -> bool:
        """What was asked was about another version, or another object, than is there. A webhook may say 409, too."""
        return self.status == 409 and str(self).startswith("Operation cannot be fulfilled on")

    @property
    def mistyped(self) -> bool:
        """The object that was sent does not fit the schema: the patch, not the live object, cannot be typed or read."""
        return any(
            words in str(self) for words in ("failed to create typed patch object", "failed to convert new object")
        )


class ApiAway(Exception):
    """No answer of the API server: it cannot be reached, is too slow, or what answers in its place is no API server."""


def check(answer: Any, holds: Places) -> None:
    """Raises `ValueError`: a proxy or a portal may well answer 200 with JSON of its own."""
    for path in holds:
        place = answer
        for name in path:
            place = place.get(name) if isinstance(place, dict) else None
        if place is None:
            raise ValueError(f"an answer without {'.'.join(path)} is no API server's")


def words_of(error: DynamicApiError) -> str:
    try:
        return str(error.summary())  # type: ignore[no-untyped-call]
    except Exception:  # the body of an error is whatever stands between us and the server
        return str(error)
