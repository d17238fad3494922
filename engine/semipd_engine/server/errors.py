"""Errors of the OpenAI surface: one exception that becomes one JSON body. Knows statuses, not how they are sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, cast

from pydantic import ValidationError

from semipd_engine.ipc.requests import GRAMMAR_LIMIT

LONGEST_MESSAGE, LONGEST_PARAM = 2000, 200
"""Characters: what a client has sent is quoted, and it may have sent anything."""
DEEPEST = 200
"""Pydantic's own limit."""

Code = Literal[
    "invalid_json",
    "context_length_exceeded",
    "origin_not_allowed",
    "invalid_http",
    "grammar_limit",
    "invalid_api_key",
    "model_not_found",
    "unsupported_endpoint",
    "unknown_url",
    "request_timeout",
    "body_too_large",
    "unsupported_encoding",
    "queue_full",
    "ttft_target",
    "tpot_target",
    "engine_error",
    "worker_crashed",
    "not_ready",
    "draining",
    "grammar_timeout",
    "engine_restarted",
    "deadline_exceeded",
]
CODES: Mapping[int, tuple[Code | None, ...]] = {
    400: (None, "invalid_json", "context_length_exceeded", "origin_not_allowed", "invalid_http", "grammar_limit"),
    401: ("invalid_api_key",),
    404: ("model_not_found", "unsupported_endpoint", "unknown_url"),
    405: ("unknown_url",),
    408: ("request_timeout",),
    413: ("body_too_large",),
    415: ("unsupported_encoding",),
    429: ("queue_full", "ttft_target", "tpot_target"),
    500: ("engine_error", "worker_crashed"),
    503: ("not_ready", "draining", "grammar_timeout", "engine_restarted"),
    504: ("deadline_exceeded",),
}
"""What a client may tell the errors of a status apart by: docs/api.md and `/openapi.json` say the same."""


class ApiError(Exception):
    """An answer other than 200. `message` names the field at fault and the remedy; `param` is that field."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: Code | None = None,
        retry_after: int | None = None,
    ) -> None:
        message = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param[:LONGEST_PARAM] if param else param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> bytes:
        """JSON in ASCII: a lone surrogate from the request that is quoted in the message must not break the answer."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode("ascii")

    def headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return headers


def bad_request(param: str | None, message: str, code: Code | None = None) -> ApiError:
    """400 for the request field `param`."""
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code=code)


def unavailable(message: str, code: Code, retry_after: int = 1) -> ApiError:
    """503 with Retry-After: nothing is wrong with the request, send it again later."""
    return ApiError(503, message, kind="service_unavailable", code=code, retry_after=retry_after)


def queue_full(message: str) -> ApiError:
    """429 with Retry-After: there are too many now."""
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=1)


def beyond_targets(slo: Literal["ttft", "tpot"], message: str, retry_after: int) -> ApiError:
    """429 with Retry-After: let in, it would miss the service's target of this kind (ttft, tpot), or make others."""
    text = f"{message} (the service's SLO, spec.admission); try again in {retry_after} s"
    code: Code = "ttft_target" if slo == "ttft" else "tpot_target"
    return ApiError(429, text, kind="rate_limit_error", code=code, retry_after=retry_after)


def expired(seconds: float) -> ApiError:
    """504: the request had so many seconds, and has not finished."""
    message = f"the request has not finished within {seconds:g} s (x-request-timeout-ms, --request-timeout)"
    return ApiError(504, message, kind="timeout_error", code="deadline_exceeded")


def engine_failure(message: str, code: Code = "engine_error") -> ApiError:
    """500: the engine failed on this request."""
    return ApiError(500, message, kind="server_error", code=code)


def core_error(message: str, code: str) -> ApiError:
    """What core says of one request: its own failure, a grammar's that let nothing follow, or that it takes none."""
    known = cast(Code, code)
    if code in CODES[503]:
        return unavailable(message, known)
    return ApiError(400, message, code=known) if code == GRAMMAR_LIMIT else engine_failure(message, known)


def from_validation(error: ValidationError) -> ApiError:
    """400 from pydantic's findings: each field with what it should be. The input itself is not repeated."""
    findings = error.errors(include_url=False, include_context=False, include_input=False)
    if findings and findings[0]["type"] == "json_invalid":
        if "recursion limit" in findings[0]["msg"]:
            return bad_request(None, f"body: more than {DEEPEST} objects and lists inside each other; send it flatter")
        return ApiError(400, f"body: {findings[0]['msg']}; send one JSON object", code="invalid_json")
    named = [_field_and_message([str(part) for part in finding["loc"]], finding["msg"]) for finding in findings]
    text = "; ".join(f"{field}: {message}" for field, message in named[:4])
    if len(named) > 4:
        text += f"; and {len(named) - 4} more"
    field = named[0][0].split(".")[0] if named else "body"
    return ApiError(400, text, param=None if field == "body" else field)


def _field_and_message(location: list[str], message: str) -> tuple[str, str]:
    """A validator of the whole body has no location: its message begins with the field."""
    message = message.removeprefix("Value error, ")
    if location:
        return ".".join(location), message
    field, colon, rest = message.partition(": ")
    return (field, rest) if colon and field.isidentifier() else ("body", message)
