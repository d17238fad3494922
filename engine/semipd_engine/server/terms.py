"""What a client's headers ask of the service of its request: how long it may take. Knows no bodies and no clock."""

from __future__ import annotations

import re
from collections.abc import Mapping

from semipd_engine.server.errors import bad_request

TIMEOUT_HEADER = "x-request-timeout-ms"
_MILLISECONDS = re.compile(r"[0-9]{1,9}")


def time_limit(headers: Mapping[str, str], most: float) -> float | None:
    """Seconds from receipt after which the request is ended; None: it may take what it takes.

    `most`: what the server allows (0: anything); a client may ask for less, and not for more. Raises `ApiError` (400).
    """
    asked = milliseconds(headers, TIMEOUT_HEADER)
    limits = [limit for limit in (asked, most) if limit]
    return min(limits, default=None)


def milliseconds(headers: Mapping[str, str], name: str) -> float | None:
    """Seconds that a header asks for; None without it. Raises `ApiError` (400)."""
    text = headers.get(name)
    if text is None:
        return None
    if not _MILLISECONDS.fullmatch(text.strip()) or not int(text):
        raise bad_request(name, "must be a whole number of milliseconds, 1 to 999999999; or leave the header out")
    return int(text) / 1000
