"""Clients' grammars that would end a process, or hold it for ever: they end a child of the judge, and are 400."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.lib.waiting import wait_until
from semipd_engine.server import grammar_judge, grammar_trial
from semipd_engine.server.errors import ApiError
from semipd_engine.server.grammar_judge import GrammarJudge
from semipd_engine.server.grammar_trial import (
    BUSY,
    LOST,
    NOT_BEGUN,
    QUESTION,
    TOO_COSTLY,
    TOO_DEEP,
    TOO_LARGE,
    VERDICT,
    Trials,
    _cause,
    _drawn,
)
from semipd_engine.server.structured import MAX_GRAMMAR_CHARACTERS
from semipd_engine.server.tools import HERMES

pytestmark = pytest.mark.unit

NOTHING = "no text follows"
UNHURRIED = "from semipd_engine.server import grammar_trial as trial; trial.WALL_SECONDS = 3600.0; trial.main()"
"""A machine that does not have two seconds of a processor within twenty is busy, which is no verdict on a grammar."""


def chain(length: int) -> dict[str, Any]:
    """Each refers to the next."""
    links = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "null"}]} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "null"}}}


COSTLY = {"allOf": [{"type": "string", "pattern": f"a{{{i}}}b|c.*d{i}"} for i in range(40)]}
"""Never seen to end; time or memory does first."""
RULES = "start: r0\n" + "\n".join(f'r{i}: "x" r{i + 1}' for i in range(5000)) + '\nr5000: "z"'

SLOW = "root ::= r0\n" + "\n".join(f'r{i} ::= "x" r{i + 1}' for i in range(5000)) + '\nr5000 ::= "z"'


def judged(model_dir: Path, work: Callable[[GrammarJudge], Any]) -> Any:
    async def run() -> Any:
        judge = GrammarJudge(model_dir, 400)
        judge._command = ("-c", UNHURRIED, *judge._command[2:])
        try:
            return await work(judge)
        finally:
            await judge.end()

    return asyncio.run(run())


def refusal(model_dir: Path, given: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as refused:
        judged(model_dir, lambda judge: judge.grammar_of(given))
    return refused.value


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"guided_json": chain(3000)}, TOO_DEEP),
        ({"guided_grammar": RULES}, TOO_DEEP),
        ({"guided_grammar": 'start: %json {"const": -9223372036854775808}'}, "integer near -2 ** 63"),
        ({"guided_grammar": SLOW}, TOO_COSTLY),
        ({"guided_json": COSTLY}, "simplify it"),
        ({"guided_json": chain(1000)}, "at its limits"),
        ({"guided_grammar": 'root ::= "a" root'}, "at its limits"),
        ({"guided_json": {"$ref": "#"}}, NOTHING),
        ({"guided_json": {"allOf": [{"$ref": "#"}]}}, NOTHING),
        ({"guided_json": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}}, NOTHING),
        ({"guided_grammar": "start: start"}, NOTHING),
        ({"guided_grammar": "start: a\na: a"}, NOTHING),
        ({"guided_grammar": "root ::= root"}, NOTHING),
        ({"guided_json": {"enum": ["x" * MAX_GRAMMAR_CHARACTERS]}}, "simplify it"),
        ({"guided_json": {"enum": ["\ud800"]}}, "cannot be used"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_refused_whatever_it_does(model_dir: Path, given: dict[str, Any], says: str) -> None:
    refused = refusal(model_dir, given)
    assert (refused.status, refused.param) == (400, next(iter(given)))
    assert says in refused.message and len(refused.message) < 700 and "<state>" not in refused.message


def test_many_choices_are_no_trouble(model_dir: Path) -> None:
    assert judged(model_dir, lambda judge: judge.grammar_of({"guided_choice": [f"choice {i}" for i in range(10_000)]}))


def test_tools_are_tried_too_and_the_one_at_fault_is_named(model_dir: Path) -> None:
    parts = ({"type": "null"}, {"$ref": "#/nowhere"})
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object", "properties": {"a": part}}}}
        for i, part in enumerate(parts)
    ]
    with pytest.raises(ApiError) as refused:
        judged(model_dir, lambda judge: judge.calls_grammar(tools, None, HERMES, True))
    assert refused.value.param == "tools.1.function.parameters"
    assert "f0" in judged(model_dir, lambda judge: judge.calls_grammar(tools, "f0", HERMES, True))


def test_others_are_answered_beside_one_that_never_ends_and_a_verdict_is_kept(model_dir: Path) -> None:
    async def work(judge: GrammarJudge) -> None:
        costly = asyncio.create_task(judge.grammar_of({"guided_json": COSTLY}))
        for number in range(3):
            assert await judge.grammar_of({"guided_json": {"const": number}})
        assert not costly.done()
        with pytest.raises(ApiError):
            await costly
        asked = judge._number
        with pytest.raises(ApiError, match="cannot be used"):
            await judge.grammar_of({"guided_json": COSTLY})
        assert await judge.grammar_of({"guided_json": {"const": 1}}) and judge._number == asked

    judged(model_dir, work)


def test_what_many_ask_at_once_is_tried_once_and_kept_once(model_dir: Path) -> None:
    async def work(judge: GrammarJudge) -> None:
        same = {"guided_json": {"const": "the same"}}
        asking = [asyncio.create_task(judge.grammar_of(same)) for _ in range(20)]
        await asyncio.to_thread(wait_until, lambda: judge._asked)
        asking.pop().cancel()  # the others still wait
        assert len(set(await asyncio.gather(*asking))) == 1 and judge._number == 1
        assert judge._kept_bytes == sum(len(asked) + len(answer) for asked, answer in judge._kept.items())
        await asyncio.gather(*(judge.grammar_of({"guided_json": {"const": number}}) for number in range(2)))
        assert judge._kept_bytes == sum(len(asked) + len(answer) for asked, answer in judge._kept.items())
        assert not judge._asked and not judge._numbers

    judged(model_dir, work)


def costly(number: int) -> dict[str, Any]:
    return {"guided_json": COSTLY | {"title": f"{number}"}}


def test_ones_costly_grammars_are_no_wait_for_another(model_dir: Path) -> None:
    """Eight of one client's, four at a time: served as they come, a fifth of them would have to end first."""

    async def work(judge: GrammarJudge) -> None:
        assert await judge.grammar_of({"guided_json": {}})
        many = [asyncio.create_task(judge.grammar_of(costly(number), "one")) for number in range(8)]
        await asyncio.to_thread(wait_until, lambda: len(judge._asked) == 8)
        assert judge._process is not None
        process = psutil.Process(judge._process.pid)
        await asyncio.to_thread(wait_until, lambda: len(process.children()) == 3)
        assert await judge.grammar_of({"guided_json": {"const": "another's"}}, "another")
        assert sum(task.done() for task in many) < 4
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        assert not judge._asked and not judge._asking
        assert await judge.grammar_of({"guided_json": {"const": "one's"}}, "one")

    judged(model_dir, work)


def test_a_client_asks_no_more_than_so_many_at_once(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_judge, "MOST_ASKED", 2)

    async def work(judge: GrammarJudge) -> None:
        many = [asyncio.create_task(judge.grammar_of(costly(number), "one")) for number in range(2)]
        await asyncio.to_thread(wait_until, lambda: len(judge._asked) == 2)
        with pytest.raises(ApiError, match="try again") as refused:
            await judge.grammar_of({"guided_json": {"const": 1}}, "one")
        assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "queue_full", 1)
        same = asyncio.create_task(judge.grammar_of(costly(0), "one"))
        await asyncio.to_thread(wait_until, lambda: next(iter(judge._asked.values())).waiting == 2)
        assert await judge.grammar_of({"guided_json": {"const": 1}}, "another")
        for task in (*many, same):
            task.cancel()
        await asyncio.gather(*many, same, return_exceptions=True)
        assert await judge.grammar_of({"guided_json": {"const": 2}}, "one")

    judged(model_dir, work)


def test_what_is_found_for_one_client_is_told_to_all(model_dir: Path) -> None:
    """Each asks by itself, so that nobody's waits behind another's; the first verdict ends it for all of them."""

    async def work(judge: GrammarJudge) -> None:
        assert await judge.grammar_of({"guided_json": {}})
        others = [asyncio.create_task(judge.grammar_of(costly(number), "busy")) for number in range(3)]
        same = {"guided_json": {"const": "the same"}}
        asking = [asyncio.create_task(judge.grammar_of(same, each)) for each in ("busy", "free")]
        assert len(set(await asyncio.gather(*asking))) == 1
        assert not any(task.done() for task in others) and len(judge._asked) == 3
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    judged(model_dir, work)


def test_a_child_that_others_end_says_nothing_of_its_grammar(model_dir: Path) -> None:
    async def work(judge: GrammarJudge) -> None:
        costly = asyncio.create_task(judge.grammar_of({"guided_json": COSTLY}))
        await asyncio.to_thread(wait_until, lambda: judge._process is not None)
        assert judge._process is not None
        process = psutil.Process(judge._process.pid)
        (child,) = await asyncio.to_thread(wait_until, process.children)
        assert process.num_threads() == 1, "it forks"
        child.kill()
        with pytest.raises(ApiError, match="try again") as lost:
            await costly
        assert (lost.value.status, lost.value.code) == (503, "grammar_timeout") and not judge._kept
        assert judge._process is not None and judge._process.pid == process.pid

    judged(model_dir, work)


def test_a_child_without_its_limits_says_nothing_of_its_grammar() -> None:
    assert _cause(NOT_BEGUN << 8, 0.0, late=False) == {"busy": LOST}
    assert _cause(1 << 8, 0.0, late=False) == {"died": TOO_LARGE}


def test_the_kernels_limit_is_a_verdict_and_ours_on_time_is_the_machines() -> None:
    """What a child has spent is told more finely than the kernel counts against its limit."""
    assert _cause(signal.SIGXCPU, 1.5, late=False) == {"died": TOO_COSTLY}
    assert _cause(signal.SIGXCPU, 1.5, late=True) == {"busy": BUSY}


def test_who_waits_for_too_long_for_a_child_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here none ever begins."""
    monkeypatch.setattr(grammar_trial, "AT_ONCE", 0)
    monkeypatch.setattr(grammar_trial, "WALL_SECONDS", -1.0)
    (questions, asks), (told, verdicts) = os.pipe(), os.pipe()
    os.write(asks, QUESTION.pack(7, 1, 2) + b"{}")
    os.close(asks)
    Trials(questions, verdicts, lambda question: {}).run()
    number, size = VERDICT.unpack(os.read(told, VERDICT.size))
    assert (number, json.loads(os.read(told, size))) == (7, {"busy": BUSY})
    for end in (questions, told, verdicts):
        os.close(end)


@given(mask=st.binary(min_size=1, max_size=40).filter(any), seed=st.integers())
def test_what_is_drawn_may_follow(mask: bytes, seed: int) -> None:
    token = _drawn(mask, [at for at, byte in enumerate(mask) if byte], random.Random(seed))
    assert mask[token // 8] >> token % 8 & 1


def test_nobody_works_for_who_has_left_and_a_lost_judge_is_replaced(model_dir: Path) -> None:
    async def work(judge: GrammarJudge) -> None:
        assert await judge.grammar_of({"guided_json": {}})
        assert judge._process is not None
        process = psutil.Process(judge._process.pid)
        costly = asyncio.create_task(judge.grammar_of({"guided_json": COSTLY}))
        await asyncio.to_thread(wait_until, process.children)
        costly.cancel()
        await asyncio.to_thread(wait_until, lambda: not process.children())
        costly = asyncio.create_task(judge.grammar_of({"guided_json": COSTLY}))
        await asyncio.to_thread(wait_until, process.children)
        process.kill()
        with pytest.raises(ApiError, match="try again") as lost:
            await costly
        assert lost.value.status == 503
        assert await judge.grammar_of({"guided_json": {"const": 5}})

    judged(model_dir, work)
