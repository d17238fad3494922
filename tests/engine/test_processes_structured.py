"""Structured output through the real processes: what ends validates, and the free rows beside it never notice.

With the fake model, whose next token depends on every token before it, and with a tiny random model.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from tests.engine.fake_model import VOCABULARY, reference
from tests.engine.harness import ApiClient, Engine, Stream, engine_for
from tests.unit.server.conftest import write_model

from e2e.lib.waiting import wait_until
from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.contract import Phase
from semipd_engine.server.structured import grammar_of

pytestmark = pytest.mark.engine

ENDS = (0, 2)
SCHEMAS = [
    {"enum": ["red", "green", "blue"]},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 5},
    {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,6}$"}, "on": {"type": "boolean"}},
        "required": ["name", "on"],
        "additionalProperties": False,
    },
]


def grammar(schema: object) -> str:
    return grammar_of({"structured_outputs": {"json": schema, "disable_any_whitespace": True}})


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    write_model(tmp_path / "model")
    yield from engine_for(tmp_path, {"SEMIPD_FAKE_STEP_MS": "2"})


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Engine]:
    """So few blocks that requests lose theirs to each other."""
    write_model(tmp_path / "model")
    yield from engine_for(tmp_path, {"SEMIPD_FAKE_STEP_MS": "1"}, kv_cache_memory=16 * 16 * 4, max_model_len=128)


def ask(client: ApiClient, seed: int) -> tuple[Stream, object]:
    schema = SCHEMAS[seed % len(SCHEMAS)]
    prompt = random.Random(seed).choices(range(10, 380), k=20 + seed)
    return client.add(prompt, 60, grammar=grammar(schema), stop_token_ids=ENDS), schema


def check(engine: Engine, stream: Stream, schema: object) -> bool:
    """Whether it ended by itself; then it follows the schema."""
    stream.wait(120)
    assert stream.error is None, stream.error
    if stream.finish_reason != "stop":
        return False
    assert stream.tokens[-1] in ENDS
    text = Tokenizer(engine.options.model).decode(stream.tokens[:-1])
    jsonschema.validate(json.loads(text), schema)  # type: ignore[arg-type]
    return True


def free(client: ApiClient, seed: int) -> Stream:
    return client.add(random.Random(1000 + seed).choices(range(VOCABULARY - 20), k=30), 60)


def test_masked_rows_follow_their_schema_and_free_ones_equal_their_solo_run(engine: Engine) -> None:
    client = engine.client()
    streams = [(ask(client, seed), free(client, seed)) for seed in range(9)]
    ended = [check(engine, stream, schema) for (stream, schema), _ in streams]
    assert sum(ended) >= 6
    for _, beside in streams:
        assert beside.wait().tokens == reference(beside.prompt, 60)
    again = [ask(client, seed)[0].wait().tokens for seed in range(9)]
    assert again == [stream.tokens for (stream, _), _ in streams], "alone it says the same"


def test_a_preemption_changes_nothing(small: Engine) -> None:
    client = small.client()
    solo = [ask(client, seed)[0].wait().tokens for seed in range(3)]
    streams = [(ask(client, seed), free(client, seed)) for seed in range(3)]
    for (stream, schema), beside in streams:
        check(small, stream, schema)
        assert beside.wait(120).tokens == reference(beside.prompt, 60)
    assert [stream.tokens for (stream, _), _ in streams] == solo
    assert sum(stream.preemptions + beside.preemptions for (stream, _), beside in streams) > 0


@pytest.mark.parametrize("phase", list(Phase))
def test_a_workers_death_changes_nothing(engine: Engine, phase: Phase) -> None:
    client = engine.client()
    solo = [ask(client, seed)[0].wait().tokens for seed in range(6)]
    over = threading.Event()

    def steps() -> int:
        return sum(record["phase"] == phase for record in engine.records("step"))

    def kill() -> None:
        while not over.wait(0.15):
            engine.wait_state()
            before = steps()  # without one between two deaths nothing would ever end
            wait_until(lambda before=before: steps() > before or over.is_set(), describe="a step")
            engine.kill_worker(phase)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(3):
            streams = [(ask(client, seed), free(client, seed)) for seed in range(6)]
            for (stream, schema), beside in streams:
                check(engine, stream, schema)
                assert beside.wait(120).tokens == reference(beside.prompt, 60)
            assert [stream.tokens for (stream, _), _ in streams] == solo
    finally:
        over.set()
        killer.join()
    assert engine.snapshot().restarts[phase] > 0


def test_a_client_that_leaves_amid_a_grammar_frees_its_blocks(engine: Engine) -> None:
    client = engine.client()
    streams = [ask(client, seed)[0] for seed in range(8)]
    for stream in streams:
        client.abort(stream)
        stream.wait()
    assert free(client, 1).wait().tokens == reference(free(client, 1).wait().prompt, 60)
    engine.wait_idle()


def test_who_leaves_costs_nobody_a_step(engine: Engine) -> None:
    """In the queue, amid a prompt, a fan-out or a grammar: once an abort is answered, no plan holds a row of it."""
    client, draw = engine.client(), random.Random(0)
    witness = client.add([7, 8, 9], 380)
    doomed = list[Stream]()
    for seed in range(40):
        kind = draw.choice(["queue", "prompt", "fan-out", "grammar"])
        if kind == "grammar":
            doomed.append(ask(client, seed)[0])
        else:
            prompt = draw.choices(range(10, 380), k=320 if kind == "prompt" else 40)
            doomed += [client.add(prompt, 70) for _ in range(5 if kind == "fan-out" else 1)]
        if draw.random() < 0.4:
            client.abort(draw.choice(doomed))
    for stream in doomed:
        client.abort(stream)
    for stream in doomed:
        stream.wait()
    gone = time.monotonic()
    later = client.add([5, 6, 7], 30)
    for stream in (witness, later):
        assert stream.wait().tokens == reference(stream.prompt, stream.sampling.max_tokens)
    after = [record for record in engine.records("plan") if record["at"] > gone]
    assert sum(record["tokens"] for record in after if record["phase"] == "prefill") == 3
    assert {record["batch"] for record in after} <= {1, 2}
    engine.wait_idle()


def test_a_grammar_that_cannot_be_used_ends_its_request_only(engine: Engine) -> None:
    client = engine.client()
    bad, beside = client.add([5, 6, 7], 20, grammar="nonsense", stop_token_ids=ENDS), free(client, 2)
    assert "grammar" in (bad.wait().error or "")
    assert beside.wait().tokens == reference(beside.prompt, 60)
