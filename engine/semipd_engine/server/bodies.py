"""A request's body, from its first byte to its model. Bounded so that nobody waits for another's: parsing is one call
that lets no other thread run, so what may be parsed is what takes some 20 ms, and large bodies are parsed in turns.

A body of text is as long as its bytes, escapes being the dearest of them (2 ns each), and integers of thousands of
digits (5 ns); what it holds besides is counted before it is parsed: members of objects, objects and lists (0.3 µs
each), other values (0.05 µs).
"""

from __future__ import annotations

import asyncio
import codecs
from typing import NamedTuple, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from semipd_engine.server.errors import ApiError, from_validation
from semipd_engine.server.held_bodies import SMALL_BYTES

MAX_BODY_BYTES = 4 << 20
BYTES_PER_TOKEN = 8
"""Of a prompt's text, escapes included: the longest prompts of a model with a long context need more than the above."""
MAX_ELEMENTS = 1 << 17
"""Values of a body, most of them token ids, beside those of the longest prompt."""
MAX_NAMES = 1 << 15
"""Members of objects; and as many objects and lists."""

Model = TypeVar("Model", bound=BaseModel)


class Counts(NamedTuple):
    """Of JSON text: commas and opening brackets, colons, opening brackets."""

    values: int = 0
    names: int = 0
    containers: int = 0

    def beside(self, text: bytes | bytearray, start: int = 0, end: int | None = None) -> Counts:
        commas, names, lists, objects = (text.count(sign, start, end) for sign in (b",", b":", b"[", b"{"))
        containers = lists + objects
        return Counts(self.values + commas + containers, self.names + names, self.containers + containers)

    def within(self, most: Counts) -> bool:
        return all(count <= limit for count, limit in zip(self, most, strict=True))


def most_values(max_tokens: int) -> int:
    return MAX_ELEMENTS + max_tokens


class Bodies:
    """Of one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def read(self, request: Request, model: type[Model], max_tokens: int = 0) -> tuple[Model, int]:
        """The request's body as `model`, and its size in bytes; `max_tokens`: of the longest prompt. Raises `ApiError`
        (400 with the fields at fault, 413, 415)."""
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise ApiError(
                415,
                f"content-encoding: {encoding!r} is not read here; send the body as it is",
                param="content-encoding",
                code="unsupported_encoding",
            )
        body, counts, most_bytes = bytearray(), Counts(), max(MAX_BODY_BYTES, BYTES_PER_TOKEN * max_tokens)
        too_large = ApiError(413, f"body: larger than {most_bytes} bytes; send less", code="body_too_large")
        if int(request.headers.get("content-length", 0)) > most_bytes:  # it need not be sent
            raise too_large
        async for part in request.stream():
            body += part
            counts = counts.beside(part)
            if len(body) > most_bytes:
                raise too_large
        most = Counts(most_values(max_tokens), MAX_NAMES, MAX_NAMES)
        if not counts.within(most):  # an upper bound: text has such signs, too
            counts = await asyncio.get_running_loop().run_in_executor(None, counted, bytes(body), most)
            _check(counts, most)
        if body.startswith(codecs.BOM_UTF8):
            del body[: len(codecs.BOM_UTF8)]
        if len(body) <= SMALL_BYTES:
            return _parsed(body, model), len(body)
        async with self._turn:
            try:
                return _parsed(body, model), len(body)
            finally:
                await asyncio.sleep(0)  # all others have their turn before the next large one is parsed


def _check(counts: Counts, most: Counts) -> None:
    for count, limit, kind in zip(counts, most, ("values", "names of fields", "objects and lists"), strict=True):
        if count > limit:
            message = f"body: has more than {limit} {kind}; send less in one request"
            raise ApiError(413, message, code="body_too_large")


def _parsed(body: bytearray, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


def counted(body: bytes, most: Counts) -> Counts:
    """The signs of JSON text outside its strings, until there are more of a kind than `most`.

    JSON has at most two strings for each comma and opening bracket, so a text with more strings is none, and counts as
    too many: the work is bounded whatever the bytes.
    """
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # a quotation mark that is left begins or ends a string
    counts, at, strings = Counts(), 0, 0
    while counts.within(most):
        quote = body.find(b'"', at)
        counts = counts.beside(body, at, quote if quote >= 0 else len(body))
        if quote < 0:
            break
        strings += 1
        if strings > 2 * most.values + 2:
            return counts._replace(values=most.values + 1)
        at = (body.find(b'"', quote + 1) + 1) or len(body)
    return counts
