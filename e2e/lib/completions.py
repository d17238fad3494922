"""A client of /v1/completions that returns what a comparison needs: token ids, their log-probabilities, and when.

The exact opposite of `bench.traffic`, which measures: this one raises on anything that is not a complete answer.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import httpx

from e2e.lib.cluster import Cluster


class IncompleteAnswer(Exception):
    """An error status, an error inside the stream, a broken connection, or a stream that ended without a reason."""


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of the chosen tokens; empty unless asked for."""
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A greedy completion that ignores the end-of-sequence token."""

    prompt: tuple[int, ...]
    max_tokens: int = 64
    stream: bool = False
    logprobs: bool = False

    def body(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "model": "model",
            "prompt": list(self.prompt),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": self.stream,
        }
        if self.stream:
            content["stream_options"] = {"include_usage": True}
        if self.logprobs:
            content["logprobs"] = 1
        return content


def client(url: str) -> httpx.AsyncClient:
    """A connection for each request, as many at once as there are requests; the environment's proxy is ignored."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False)


async def complete(http: httpx.AsyncClient, ask: Ask) -> Answer:
    """Raises `IncompleteAnswer`."""
    answer = Answer()
    try:
        async with http.stream("POST", "/v1/completions", json=ask.body(), headers={"Connection": "close"}) as reply:
            if reply.status_code != 200:
                raise IncompleteAnswer(f"HTTP {reply.status_code}: {(await reply.aread()).decode()[:300]}")
            if not ask.stream:
                _take(answer, json.loads(await reply.aread()))
            else:
                async for line in reply.aiter_lines():
                    if line.startswith("data:") and not line.endswith("[DONE]"):
                        _take(answer, json.loads(line[5:]))
    except httpx.HTTPError as error:
        raise IncompleteAnswer(f"{type(error).__name__}: {error}") from error
    if answer.finish_reason is None:
        raise IncompleteAnswer(f"the stream ended after {len(answer.token_ids)} tokens without a finish reason")
    return answer


def _take(answer: Answer, event: dict[str, Any]) -> None:
    if error := event.get("error"):
        raise IncompleteAnswer(f"error in the answer: {error}")
    answer.usage = event.get("usage") or answer.usage
    for choice in event.get("choices") or ():
        answer.token_ids += choice.get("token_ids") or []
        answer.logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or []
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason


def complete_all(url: str, asks: Sequence[Ask], *, at_once: int = 1) -> list[Answer]:
    """Answers in order, at most `at_once` running at a time. Raises `IncompleteAnswer`."""

    async def run() -> list[Answer]:
        slots = asyncio.Semaphore(at_once)

        async def one(http: httpx.AsyncClient, ask: Ask) -> Answer:
            async with slots:
                return await complete(http, ask)

        async with client(url) as http:
            return list(await asyncio.gather(*(one(http, ask) for ask in asks)))

    return asyncio.run(run())


@dataclass(frozen=True)
class Sent:
    """One request of a `SteadyLoad`: seconds of time.monotonic, and what went wrong."""

    began: float
    ended: float
    answer: Answer | None
    error: str = ""


class SteadyLoad(AbstractContextManager["SteadyLoad"]):
    """Clients in a thread of their own that ask again and again until the block ends; every outcome is kept."""

    def __init__(self, cluster: Cluster, url: str, asks: Sequence[Ask], *, clients: int = 4) -> None:
        self._cluster, self._url, self._asks, self._clients = cluster, url, asks, clients
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady load")
        self.sent: list[tuple[Ask, Sent]] = []

    def __enter__(self) -> SteadyLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Requests in flight still finish."""
        self._stop.set()
        self._thread.join()

    def failures(self) -> list[str]:
        return [sent.error for _, sent in self.sent if sent.error]

    def _run(self) -> None:
        with self._cluster.network():
            asyncio.run(self._all())

    async def _all(self) -> None:
        async with client(self._url) as http:
            await asyncio.gather(*(self._one(http, number) for number in range(self._clients)))

    async def _one(self, http: httpx.AsyncClient, number: int) -> None:
        while not self._stop.is_set():
            ask = self._asks[number % len(self._asks)]
            number += self._clients
            began, answer, error = time.monotonic(), None, ""
            try:
                answer = await complete(http, ask)
            except IncompleteAnswer as incomplete:
                error = str(incomplete)
            self.sent.append((ask, Sent(began, time.monotonic(), answer, error)))
            if error:
                await asyncio.sleep(0.1)
