"""Sends a plan to an OpenAI-compatible server, open loop, and records every token's time.

A request leaves when the plan says, whatever became of the earlier ones: a slow server meets a growing queue, as it
would in life. One connection for each request. Knows nothing of the service behind the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from bench.traffic import plan as plans
from bench.traffic.plan import Request
from bench.traffic.records import HUNG_UP, Record

OnToken = Callable[[int, float, str], None]
"""Called with (request index, seconds since the start, text) for each token as it arrives."""


LINGER_SECONDS = 1.0
"""A stream that outlasts another request is closed so long after its end."""


def _ignore(index: int, at: float, text: str) -> None:
    pass


@dataclass
class _Stream:
    """What one answer has brought so far."""

    token_times: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    finish_reason: str | None = None

    def take(self, event: dict[str, Any], now: float) -> str:
        """Adds one server-sent event; returns its text. Tokens that come in one event share its time."""
        if error := event.get("error"):
            raise ServerError(error.get("message", str(error)) if isinstance(error, dict) else str(error))
        self.prompt_tokens = (event.get("usage") or {}).get("prompt_tokens", self.prompt_tokens)
        if not event.get("choices"):
            return ""
        choice = event["choices"][0]
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        ids = choice.get("token_ids")
        count = len(ids) if ids is not None else int(bool(text))
        self.token_ids += ids or []
        self.token_times += [now] * count
        self.text.append(text)
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return text


class ServerError(Exception):
    """The server reported an error inside the stream, or answers something else than this protocol."""


def body(request: Request, model: str) -> tuple[str, dict[str, Any]]:
    """Path and JSON body of a request."""
    content: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "ignore_eos": request.ignore_eos,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.seed is not None:
        content["seed"] = request.seed
    if request.messages:
        return "/v1/chat/completions", content | {"messages": list(request.messages)}
    prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    return "/v1/completions", content | {"prompt": prompt}


async def served_model(url: str) -> str:
    """The name of the (first) model that the server offers. Raises `httpx.HTTPError`, `ServerError`."""
    async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
        answer = await client.get("/v1/models")
        answer.raise_for_status()
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise ServerError("/v1/models names no model: is this an OpenAI-compatible server?") from None


async def replay(
    plan: Sequence[Request],
    url: str,
    *,
    model: str = "",
    silence_seconds: float = 120.0,
    start: float | None = None,
    stop: threading.Event | None = None,
    on_token: OnToken = _ignore,
) -> list[Record]:
    """Send the plan to the server at `url` (without /v1); returns one record for each request sent, in plan order.

    `start` is the origin of all times on the monotonic clock (default: now). Once `stop` is set, nothing more is
    sent; what runs is finished. `silence_seconds` is the longest that a stream may bring nothing. Errors of requests
    are recorded, never raised. Raises `PlanError` of a plan that cannot be followed, and `httpx.HTTPError` or
    `ServerError` where not even the model's name can be had.
    """
    plans.check(plan)
    model = model or await served_model(url)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=silence_seconds, limits=limits, trust_env=False) as client:
        await client.get("/health")  # the first use of a client costs it milliseconds
        origin = time.monotonic() if start is None else start
        stopped = asyncio.Event()
        watching = asyncio.create_task(_watch(stop, stopped))
        try:
            ended = [asyncio.Event() for _ in plan]
            sends = [
                _send_in_turn(client, n, request, model, origin, stopped, ended, on_token)
                for n, request in enumerate(plan)
            ]
            return [record for record in await asyncio.gather(*sends) if record is not None]
        finally:
            watching.cancel()


def replay_now(
    plan: Sequence[Request], url: str, start: float | None = None, stop: threading.Event | None = None
) -> list[Record]:
    """`replay`, blocking; another thread may set `stop`."""
    return asyncio.run(replay(plan, url, start=start, stop=stop))


async def _watch(stop: threading.Event | None, stopped: asyncio.Event) -> None:
    while stop and not stop.is_set():  # noqa: ASYNC110  # a thread that waits for it could not be cancelled
        await asyncio.sleep(0.2)
    if stop:
        stopped.set()


async def _send_in_turn(
    client: httpx.AsyncClient,
    index: int,
    request: Request,
    model: str,
    start: float,
    stopped: asyncio.Event,
    ended: list[asyncio.Event],
    on_token: OnToken,
) -> Record | None:
    """Keeps to the request's `after` and `not_after`. None: it was not sent."""
    try:
        if request.after is not None:
            await ended[request.after].wait()
            at = max(request.at, time.monotonic() - start)
            if request.not_after is not None and at > request.not_after:
                return None
            request = replace(request, at=at)
        return await _send(client, index, request, model, start, stopped, ended, on_token)
    finally:
        ended[index].set()


@contextlib.asynccontextmanager
async def _hanging_up(request: Request, start: float, ended: Sequence[asyncio.Event]) -> AsyncIterator[None]:
    """Raises TimeoutError in what it is around, when the request's `hang_up` or `outlasts` says."""
    ending = None if request.hang_up is None else max(0.0, start + request.at + request.hang_up - time.monotonic())
    async with asyncio.timeout(ending) as limit:

        async def outlast(other: asyncio.Event) -> None:
            await other.wait()
            closing = asyncio.get_running_loop().time() + LINGER_SECONDS
            if not limit.expired():
                limit.reschedule(min(closing, limit.when() or closing))

        watching = None if request.outlasts is None else asyncio.create_task(outlast(ended[request.outlasts]))
        try:
            yield
        finally:
            if watching:
                watching.cancel()


async def _send(
    client: httpx.AsyncClient,
    index: int,
    request: Request,
    model: str,
    start: float,
    stopped: asyncio.Event,
    ended: Sequence[asyncio.Event],
    on_token: OnToken,
) -> Record | None:
    """None: stopped before it was sent."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(start + request.at - time.monotonic()):
            await stopped.wait()
    if stopped.is_set():
        return None
    path, content = body(request, model)
    stream, status, error = _Stream(), 0, None
    sent = time.monotonic() - start
    try:
        async with (
            _hanging_up(request, start, ended),
            client.stream("POST", path, json=content, headers={"Connection": "close"}) as answer,
        ):
            status = answer.status_code
            if status != 200:
                error = f"HTTP {status}: {(await answer.aread()).decode(errors='replace')[:300]}"
            else:
                async for line in answer.aiter_lines():
                    if not line.startswith("data:") or line.endswith("[DONE]"):
                        continue
                    now = time.monotonic() - start
                    text = stream.take(json.loads(line[5:]), now)
                    if stream.token_times and stream.token_times[-1] == now:
                        on_token(index, now, text)
    except TimeoutError:
        stream.finish_reason = HUNG_UP
    except (httpx.HTTPError, ServerError, ValueError, KeyError, TypeError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    return Record(
        index=index,
        label=request.label,
        planned=request.at,
        sent=sent,
        token_times=tuple(stream.token_times),
        token_ids=tuple(stream.token_ids),
        text="".join(stream.text),
        prompt_tokens=stream.prompt_tokens,
        finish_reason=stream.finish_reason,
        status=status,
        error=error,
        ended=time.monotonic() - start,
    )
