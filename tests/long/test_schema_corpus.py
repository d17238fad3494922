"""Two hundred schemas through the real processes: what ends validates, and free rows beside them never notice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import jsonschema
import pytest
from tests.engine.fake_model import VOCABULARY, reference
from tests.engine.harness import Engine, engine_for
from tests.unit.server.conftest import write_model
from tests.unit.server.schema_corpus import corpus

from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.server.structured import grammar_of

pytestmark = pytest.mark.long

ENDS = (0, 2)
AT_ONCE = 20
MOST = 2000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    write_model(folder / "model")
    yield from engine_for(folder, max_model_len=MOST + 100, kv_cache_memory=1 << 20)


def test_the_corpus_through_the_processes(engine: Engine) -> None:
    client, tokenizer, ended = engine.client(), Tokenizer(engine.options.model), 0
    for begin in range(0, len(corpus()), AT_ONCE):
        streams = []
        for number, schema in enumerate(corpus()[begin : begin + AT_ONCE], begin):
            draw = random.Random(number)
            grammar = grammar_of({"structured_outputs": {"json": schema}})
            asked = client.add(draw.choices(range(10, 380), k=20), MOST, grammar=grammar, stop_token_ids=ENDS)
            streams.append((schema, asked, client.add(draw.choices(range(VOCABULARY - 20), k=30), 60)))
        for schema, asked, free in streams:
            assert free.wait(300).tokens == reference(free.prompt, 60)
            assert asked.wait(300).error is None, asked.error
            if asked.finish_reason == "stop":
                ended += 1
                text = tokenizer.decode(asked.tokens[:-1])
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert ended >= 0.95 * len(corpus())
    assert engine.snapshot().blocks.used == 0
