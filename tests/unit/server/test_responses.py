"""What is encoded once for a stream makes no other bytes of its events, whatever stands in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd_engine.server import __main__ as program
from semipd_engine.server.http_io import dump
from semipd_engine.server.responses import Chunks, envelope

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


def test_without_the_fast_event_loop_and_parser_the_plain_ones_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program.loop_factory() is not None and program.http_protocol().__name__ == "HttpToolsProtocol"
    monkeypatch.setitem(program.sys.modules, "uvloop", None)
    monkeypatch.setitem(program.sys.modules, "httptools", None)
    monkeypatch.delitem(program.sys.modules, "uvicorn.protocols.http.httptools_impl")
    assert program.loop_factory() is None and program.http_protocol().__name__ == "H11Protocol"
