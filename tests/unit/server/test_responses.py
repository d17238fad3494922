"""What is encoded once for a stream makes no other bytes of its events, whatever stands in them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.ipc.tokens import Sampling, TokenLogprobs, pack_logprobs
from semipd_engine.server import __main__ as program
from semipd_engine.server.handlers import _events
from semipd_engine.server.json_text import dump, written
from semipd_engine.server.protocol import CompletionRequest
from semipd_engine.server.responses import Chunks, CompletionShape, envelope
from semipd_engine.server.sequence import Delta, Sequence, TextOptions

pytestmark = pytest.mark.unit
TEXT = st.text(st.characters(codec=None), max_size=8)
CHOICE = st.fixed_dictionaries({"index": st.integers(0, 9), "text": TEXT, "logprobs": st.none() | st.floats(-99, 0)})


@given(TEXT, st.lists(CHOICE, max_size=2), st.sampled_from([{}, {"usage": None}, {"usage": {"total_tokens": 3}}]))
def test_an_event_is_the_envelope_with_its_choices(name: str, choices: list[Any], more: dict[str, Any]) -> None:
    common = ("cmpl-1", "text_completion", name, "fp_1")
    event = Chunks(*common, created=5).event(choices, more)
    assert event.startswith(b"data: ") and event.endswith(b"\n\n") and b"\n" not in event[:-2]
    assert json.loads(event[6:]) == envelope(*common, choices, 5) | more


def test_lone_surrogates_are_escaped_and_no_number_is_left_that_json_lacks() -> None:
    assert dump({"text": "\ud800é"}) == b'{"text":"\\ud800\\u00e9"}'
    assert dump({"logprob": float("nan")}) == b'{"logprob":null}'
    assert dump([written({"a": [1, None]}), "x"]) == b'[{"a":[1,null]},"x"]'
    assert dump([written({"a": [1, None]}), "\ud800"]) == b'[{"a":[1,null]},"\\ud800"]'


async def test_a_stream_shows_a_prompts_logprobs_once_and_forgets_them(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = list[Any]()

    async def to_thread(work: Any, *given: Any) -> Any:
        threads.append(work)
        return work(*given)

    async def deltas() -> AsyncIterator[list[Delta]]:
        for text, end in (("a", None), ("b", None), ("c", "length")):
            yield [Delta(0, text, [5], [TokenLogprobs(-1.0)], [0], end)]

    monkeypatch.setattr("semipd_engine.server.handlers.asyncio.to_thread", to_thread)
    body = CompletionRequest.model_validate({"prompt": [5, 6], "echo": True, "logprobs": 0, "stream": True})
    tokenizer = Tokenizer(model_dir)
    sequence = Sequence(0, [5, 6], Sampling(), TextOptions(), tokenizer)
    sequence.packed_logprobs = pack_logprobs([TokenLogprobs(-2.0)])
    service: Any = SimpleNamespace(card=SimpleNamespace(name="m"), fingerprint="f")
    generation: Any = SimpleNamespace(id="x", sequences=[sequence], deltas=deltas)
    events = [each async for each in _events(service, generation, body, CompletionShape(body, tokenizer))]
    shown = [json.loads(each[6:])["choices"][0]["logprobs"]["token_logprobs"] for each in events[:-1]]
    assert shown == [[None, -2.0, -1.0], [-1.0], [-1.0]]
    assert len(threads) == 1 and not sequence.packed_logprobs and not sequence.prompt_logprobs


def test_without_the_fast_event_loop_and_parser_the_plain_ones_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def beneath() -> set[str]:
        return {each.__name__ for each in program.http_protocol().__mro__}

    assert program.loop_factory() is not None and "HttpToolsProtocol" in beneath()
    monkeypatch.setitem(program.sys.modules, "uvloop", None)
    monkeypatch.setitem(program.sys.modules, "httptools", None)
    monkeypatch.delitem(program.sys.modules, "uvicorn.protocols.http.httptools_impl")
    assert program.loop_factory() is None and "H11Protocol" in beneath()
