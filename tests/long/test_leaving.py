"""Clients that leave at a thousand random moments: what they held is back within a second, and nobody waits for it.

The real api and core, with a model that computes next to nothing: what a stream waits for is theirs. Each round has six
clients, more than core serves at once, and lasts until all have left.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any

import httpx
import pytest
from tests.engine.harness import Engine, engine_for
from tests.unit.server.conftest import write_model
from tests.unit.server.schema_corpus import corpus

from e2e.lib.process import answers, stop
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.long

ROUNDS, TOGETHER = 170, 6
LONGEST_STAY = 0.12
"""Seconds: a prompt takes 50 ms here, an answer a second."""
BACK_SECONDS = 1.0
DELAY_SECONDS = 0.05
EVERYTHING = 1 << 40
"""Of what core has observed is known: its answers stay small."""


@dataclass
class Service:
    engine: Engine
    port: int


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("leaving")
    write_model(folder / "model")
    pace = {"SEMIPD_FAKE_TOKEN_MS": "0.2", "SEMIPD_FAKE_STEP_MS": "2"}
    for engine in engine_for(folder, pace, max_num_seqs=5, kv_cache_memory=1 << 18, max_model_len=512):
        command = [sys.executable, "-m", "semipd_engine.server", "--model", str(folder / "model"), "--port", "0"]
        api = subprocess.Popen([*command, "--run-dir", str(folder), "--max-queued-requests", "256"])
        try:
            wait_until((folder / "api.port").exists)
            port = int((folder / "api.port").read_text())
            wait_until(partial(answers, f"http://127.0.0.1:{port}/ready"))
            yield Service(engine, port)
        finally:
            stop(api)


def bodies(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """What a client is in the midst of when it leaves."""
    ids = draw.choices(range(10, 380), k=draw.randrange(20, 250))
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 250, "ignore_eos": True, "stream": draw.random() < 0.5}
    kind = draw.choice(["queue", "prompt", "fan-out", "grammar"])
    if kind == "prompt":
        body["prompt"] = draw.choices(range(10, 380), k=450)
        body["max_tokens"] = 50
    elif kind == "fan-out":
        body |= {"prompt": [ids, ids[:30]], "n": draw.randrange(2, 9)}
    elif kind == "grammar":
        body |= {"guided_json": draw.choice(corpus()), "ignore_eos": False}
    return kind, body


async def visit(port: int, body: dict[str, Any], stay: float, how: str) -> None:
    """Ask, and leave: by closing the connection, by a reset of it, or after half of the request."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    writer.write(head + (content[: len(content) // 2] if how == "half" else content))
    await asyncio.sleep(stay)
    if how == "reset":
        writer.transport.abort()
    else:
        writer.close()


def watch(port: int, began: Event, over: Event, gaps: Queue[list[float]]) -> None:
    """A stream that goes on and on, with an event for each token; the seconds between them."""
    body = {"prompt": [7, 8, 9], "max_tokens": 480, "ignore_eos": True, "stream": True, "return_token_ids": True}
    seen: list[float] = []
    while not over.is_set():
        with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60) as answer:
            last = 0.0
            for _ in answer.iter_bytes():
                now = time.monotonic()
                if last:
                    seen.append(now - last)
                last = now
                began.set()
                if over.is_set():
                    break
    gaps.put(seen)


@asynccontextmanager
async def witness(port: int) -> AsyncIterator[list[float]]:
    """Its gaps, once it is over. In a process of its own: what it waits for is not the clients of this one."""
    spawn = multiprocessing.get_context("spawn")
    began, over, queue, gaps = spawn.Event(), spawn.Event(), spawn.Queue(), list[float]()
    process = spawn.Process(target=watch, args=(port, began, over, queue), daemon=True)
    process.start()
    assert await asyncio.to_thread(began.wait, 60)
    try:
        yield gaps
    finally:
        over.set()
        gaps += await asyncio.to_thread(queue.get, True, 60)
        process.join(60)


async def rounds(service: Service, seed: int, holding: int) -> tuple[list[float], Counter[str]]:
    """Seconds until all was back after each round, and how many left of each kind. `holding`: sequences that stay."""
    draw, back, left = random.Random(seed), list[float](), Counter[str]()
    for _ in range(ROUNDS // 2):
        visits = []
        for _ in range(TOGETHER):
            kind, body = bodies(draw)
            left[kind] += 1
            how = draw.choice(["close", "close", "reset", "half"])
            visits.append(visit(service.port, body, draw.uniform(0, LONGEST_STAY), how))
        await asyncio.gather(*visits)
        gone = time.monotonic()
        while True:
            seen = await asyncio.to_thread(service.engine.snapshot, EVERYTHING)
            own = 31 * holding  # blocks of sixteen: the longest that the witness has
            if seen.waiting + seen.prefilling + seen.decoding <= holding and seen.blocks.used <= own:
                break
            assert time.monotonic() - gone < 30, seen
            await asyncio.sleep(0.005)
        back.append(time.monotonic() - gone)
    return back, left


async def test_what_they_held_is_back_within_a_second(service: Service, record_property: Any) -> None:
    back, left = await rounds(service, seed=1, holding=0)
    record_property("left", json.dumps(left))
    record_property("longest_seconds_until_all_was_back", round(max(back), 3))
    assert max(back) < BACK_SECONDS and len(left) == 4
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{service.port}/load")).json() == {"server_load": 0}


async def test_nobody_else_is_delayed(service: Service, record_property: Any) -> None:
    """Beyond what the machine itself does to a stream that is alone, seen before and after."""
    async with witness(service.port) as before:
        await asyncio.sleep(5)
    async with witness(service.port) as beside:
        back, left = await rounds(service, seed=2, holding=1)
    async with witness(service.port) as after:
        await asyncio.sleep(5)
    record_property("left", json.dumps(left))
    record_property("longest_seconds_until_all_was_back", round(max(back), 3))
    alone = before + after
    for name, gaps in (("alone", alone), ("beside", beside)):
        record_property(f"events_{name}", len(gaps))
        record_property(f"longest_gap_{name}_seconds", round(max(gaps), 4))
    assert max(back) < BACK_SECONDS and max(beside) - max(alone) < DELAY_SECONDS
