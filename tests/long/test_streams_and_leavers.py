"""Sixty-four streams for ten minutes, one in ten of them left at random: nothing grows, each answer is its own.

The whole engine over HTTP, with a pool of blocks that is too small for all of them: prompts wait, streams are
preempted, prefixes are shared and given up. An answer is compared with that of the same request when nobody else was
there.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.engine import proc
from tests.engine.served import Served, serve

from e2e.lib.models import random_model
from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_engine.cards.registry import read_card

pytestmark = pytest.mark.long

SECONDS, STREAMS, LEAVERS = 600.0, 64, 0.1
KINDS = 60
BLOCK, BLOCKS = 16, 160
"""A fifth of what 64 requests of these lengths want."""
LOOK_SECONDS = 2.0
GROWTH_BYTES, GROWTH_DESCRIPTORS = 12 << 20, 6
"""From the second quarter of the time to the last, of all processes together; a request may leave a kilobyte behind."""


@dataclass(frozen=True)
class Look:
    """What all processes hold at a moment; of memory what no file on disk has, which others may share by and by."""

    memory: int
    descriptors: int
    blocks: dict[str, int]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = random_model("llama", "tiny")
    pool = BLOCKS * read_card(model).kv_layout(BLOCK, 4).block_bytes
    folder = tmp_path_factory.mktemp("run")
    size = ["--kv-cache-memory", str(pool), "--block-size", str(BLOCK), "--max-model-len", "512"]
    yield from serve(folder, model, *size, "--max-num-seqs", str(STREAMS))


def kinds(vocabulary: int) -> list[dict[str, Any]]:
    """Requests of many lengths; half of them greedy, half drawn by a seed; some begin alike."""
    draw = random.Random(7)
    stem = draw.choices(range(vocabulary), k=64)
    found = []
    for number in range(KINDS):
        prompt = draw.choices(range(vocabulary), k=draw.randrange(1, 240))
        asked = {"prompt": [*stem, *prompt] if number % 3 == 0 else prompt, "max_tokens": draw.randrange(1, 97)}
        drawn = {"temperature": 0.9, "top_p": 0.95, "seed": number} if number % 2 else {"temperature": 0}
        found.append({**asked, **drawn, "ignore_eos": True, "stream": True, "return_token_ids": True})
    return found


async def answer(client: httpx.AsyncClient, asked: dict[str, Any], leave_after: int | None = None) -> list[int] | None:
    """Its token ids; None: we left after so many of its events."""
    tokens, events = list[int](), 0
    async with client.stream("POST", "/v1/completions", json=asked) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            if events == leave_after:
                return None
            events += 1
            content = json.loads(line[5:])
            assert "error" not in content, content
            for choice in content["choices"]:
                tokens += choice.get("token_ids") or []
    return tokens


class Visitors:
    """They come back as soon as they have their answer, or have left."""

    def __init__(self, client: httpx.AsyncClient, asked: Sequence[dict[str, Any]], alone: Sequence[list[int]]) -> None:
        self._client, self._asked, self._alone = client, asked, alone
        self.finished = self.left = 0

    async def one(self, number: int, until: float) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            kind = draw.randrange(KINDS)
            leaves = draw.random() < LEAVERS
            # before the first token, too: that is a wait in the queue, or in the midst of a prompt
            got = await self._leave(kind, draw) if leaves else await answer(self._client, self._asked[kind])
            if got is None:
                self.left += 1
            else:
                assert got == self._alone[kind], (kind, self.finished)
                self.finished += 1

    async def _leave(self, kind: int, draw: random.Random) -> list[int] | None:
        if draw.random() < 0.5:
            return await answer(self._client, self._asked[kind], draw.randrange(self._asked[kind]["max_tokens"] + 1))
        try:
            async with asyncio.timeout(draw.uniform(0, 2)):
                return await answer(self._client, self._asked[kind])
        except TimeoutError:
            return None


def look(engine: Served) -> Look:
    tree = [psutil.Process(engine.process.pid), *psutil.Process(engine.process.pid).children(recursive=True)]
    memory = sum(proc.memory_bytes(process.pid, kind) for process in tree for kind in ("Pss_Anon", "Pss_Shmem"))
    families = text_string_to_metric_families(engine.client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == "semipd_kv_blocks"]
    blocks = {sample.labels["state"]: round(sample.value) for sample in samples}
    return Look(memory, sum(process.num_fds() for process in tree), blocks)


async def watch(engine: Served, until: float) -> list[Look]:
    seen = []
    while time.monotonic() < until:
        seen.append(await asyncio.to_thread(look, engine))
        await asyncio.sleep(LOOK_SECONDS)
    return seen


def grown(values: Sequence[float]) -> float:
    """From the second quarter to the last, medians."""
    quarter = len(values) // 4
    return statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter])


async def test_nothing_grows_and_each_answer_is_its_own(engine: Served, record_property: Any) -> None:
    asked = kinds(read_card(Path(engine.model)).vocab_size)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=engine.url, timeout=PATIENCE_S, limits=limits) as client:
        alone = [await answer(client, each) for each in asked]
        assert all(len(got or []) == each["max_tokens"] for got, each in zip(alone, asked, strict=True))
        before = await asyncio.to_thread(look, engine)
        visitors = Visitors(client, asked, [got for got in alone if got is not None])
        until = time.monotonic() + SECONDS
        watching = asyncio.create_task(watch(engine, until))
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(visitors.one(number, until))
        seen = await watching
    wait_until(engine.idle)
    after = look(engine)
    preempted = engine.gauge("vllm:num_preemptions_total")
    found = {
        "seconds": SECONDS,
        "finished": visitors.finished,
        "left": visitors.left,
        "preemptions": round(preempted),
        "most_blocks_used": max(each.blocks["used"] for each in seen),
        "memory_mb_before_and_after": [round(each.memory / 1e6, 1) for each in (before, after)],
        "memory_mb_grown_in_the_second_half": round(grown([each.memory for each in seen]) / 1e6, 2),
        "descriptors_before_and_after": [before.descriptors, after.descriptors],
        "descriptors_grown_in_the_second_half": grown([each.descriptors for each in seen]),
    }
    record_property("found", json.dumps(found))
    assert visitors.finished > 5 * visitors.left > 0 and preempted > 0
    assert {sum(each.blocks.values()) for each in (before, *seen, after)} == {BLOCKS}
    assert after.blocks["used"] == after.blocks["quarantined"] == 0
    assert grown([each.memory for each in seen]) < GROWTH_BYTES
    assert grown([each.descriptors for each in seen]) <= GROWTH_DESCRIPTORS
    assert after.descriptors <= before.descriptors + GROWTH_DESCRIPTORS
