"""What a client asks of the service of its request: how long it may take, how soon it should begin, before whom.

Headers and one field of the body, parsed once. Knows no queue and no clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from semipd_engine.server.errors import bad_request

TIMEOUT_HEADER = "x-request-timeout-ms"
TTFT_HEADERS = ("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms")
TPOT_HEADERS = ("x-slo-tpot-ms", "x-llm-d-slo-tpot-ms")
_MILLISECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Terms:
    time_limit: float | None = None
    """Seconds from receipt after which the request is ended; None: it may take what it takes."""
    ttft_target: float | None = None
    """Seconds from receipt within which the client wants its first token; None: it has not said."""
    tpot_target: float | None = None
    """Seconds for a token after the first that the client wants at most, on average; None: it has not said."""
    priority: int = 0
    """As vLLM's: the smaller, the sooner."""


def read_terms(headers: Mapping[str, str], priority: int | None, longest: float) -> Terms:
    """`longest`: what the server allows in seconds (0: anything); a client may ask for less, and not for more.

    Raises `ApiError` (400).
    """
    limits = [limit for limit in (_seconds(headers, TIMEOUT_HEADER), longest) if limit]
    return Terms(
        min(limits, default=None), _strictest(headers, TTFT_HEADERS), _strictest(headers, TPOT_HEADERS), priority or 0
    )


def _strictest(headers: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    return min((target for name in names if (target := _seconds(headers, name))), default=None)


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    if not _MILLISECONDS.fullmatch(text.strip()) or not int(text):
        raise bad_request(name, "must be a whole number of milliseconds, 1 to 999999999; or leave the header out")
    return int(text) / 1000
