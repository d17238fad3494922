"""A plan that is continued while it runs gives the tokens of one long plan, and writes for nobody who is not in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.engine.model_driver import BLOCK_SIZE, Driver, random_prompt
from tests.engine.test_decode_graphs import engine, told

from semipd_engine.ipc.steps import Continuation, Row, StepPlan, StepResult
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.worker.input_batch import PlanError
from semipd_engine.worker.servable import StaleSlot

PROMPTS = (13, 20, 30)
"""Tokens: with blocks of 16 the first and the last go into a new block in the first plan or behind it."""


def start(driver: Driver, steps: int, *lengths: int, **sampling: Any) -> tuple[StepPlan, list[list[int]]]:
    """A plan whose tables reach as far as it does, and the blocks that follow in them."""
    each = [
        Sampling(**({"temperature": 0, "max_tokens": length + 1, "seed": i} | sampling))
        for i, length in enumerate(lengths)
    ]
    requests = [driver.request(random_prompt(PROMPTS[i], 4096, i), one) for i, one in enumerate(each)]
    driver.prefill(requests)
    rows, more = [], []
    for i, request in enumerate(requests):
        held = -(-(len(request.prompt) + min(steps, lengths[i])) // BLOCK_SIZE)
        table, rest = request.block_table[:held], request.block_table[held:]
        one = request.sampling
        rows.append(Row(100 + i, request.tokens[:1], PROMPTS[i], table, outputs="last", sampling=one, output_index=1))
        more.append(rest)
    return StepPlan(40, steps, rows), more


def run(driver: Driver, plan: StepPlan, *behind: Continuation) -> list[StepResult]:
    channel = list(behind)

    def following(seq: int) -> Continuation | None:
        return channel.pop(0) if channel and channel[0].seq == seq else None

    return list(driver.runner.execute(plan, lambda seq: False, following))


def long_plan(driver: Driver, *lengths: int, **sampling: Any) -> list[StepResult]:
    return run(driver, start(driver, 30, *lengths, **sampling)[0])


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "drawn"])
def test_tokens_are_those_of_one_plan(captured: bool, drawn: dict[str, Any], device: torch.device) -> None:
    """Rows that end with the first plan, in the second and in the third, by length or at a stop id; new blocks."""
    lengths = (21, 4, 13)
    wanted = told(long_plan(engine("llama", device, captured=False)[0], *lengths, **drawn))
    for stops in ((), (wanted[3][2][1],), (wanted[5][0][1], wanted[4][1][1])):
        plain = told(long_plan(engine("llama", device, captured=False)[0], *lengths, stop_token_ids=stops, **drawn))
        driver, programs = engine("llama", device, captured=captured)
        plan, more = start(driver, 4, *lengths, stop_token_ids=stops, **drawn)
        second = Continuation(44, 5, [(100, more[0][:1]), (102, more[2])])
        third = Continuation(49, 20, [(100, more[0][1:]), (102, [])])
        results = run(driver, plan, second, third)
        assert told(results) == plain
        assert [r.seq for r in results] == list(range(40, 40 + len(plain)))
        assert [r.seq for r in results if r.last] == sorted({43, 48, 39 + len(plain)} & {r.seq for r in results})
        assert not captured or len(plain) <= programs.replays <= len(plain) + 1


def test_the_next_plans_first_step_has_begun_when_the_last_tokens_are_told(device: torch.device) -> None:
    driver, programs = engine("llama", device, captured=True)
    plan, more = start(driver, 3, 12, 12)
    behind, replays = Continuation(43, 3, [(100, more[0]), (101, more[1])]), []
    for result in driver.runner.execute(plan, lambda seq: False, lambda seq: behind if seq == 43 else None):
        replays.append((result.seq, programs.replays))
    assert replays == [(40, 2), (41, 3), (42, 4), (43, 5), (44, 6), (45, 6)]


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_who_is_left_out_is_not_written_once_more(captured: bool, device: torch.device) -> None:
    """A row whose request is gone: its blocks are others' when the plan's last step is reported."""
    driver, _ = engine("llama", device, captured=captured)
    plan, more = start(driver, 3, 12, 12)
    wanted = told(long_plan(engine("llama", device, captured=False)[0], 12, 12))
    pool = driver.kv.region.data
    steps = driver.runner.execute(
        plan, lambda seq: False, lambda seq: Continuation(43, 3, [(101, more[1])]) if seq == 43 else None
    )
    results = [next(steps) for _ in range(3)]
    assert results[-1].last and told(results) == wanted[:3]
    keys = [view[torch.tensor(plan.rows[0].block_table, device=pool.device)].clone() for view in driver.kv.layer(0)]
    rest = list(steps)
    assert told(rest) == [[one for one in step if one[0] == 101] for step in wanted[3:6]]
    for view, before in zip(driver.kv.layer(0), keys, strict=True):
        now = view[torch.tensor(plan.rows[0].block_table, device=pool.device)]
        assert torch.equal(now.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("recall", [41, 43, 44])
def test_a_recall_ends_what_is_continued(captured: bool, recall: int, device: torch.device) -> None:
    """In the plan: what continues it is not looked for. In what continues it: that ends with the step that runs."""
    driver, _ = engine("llama", device, captured=captured)
    plan, more = start(driver, 3, 12, 12)
    wanted = told(long_plan(engine("llama", device, captured=False)[0], 12, 12))
    found = list[StepResult]()
    looked, word = list[int](), [0]

    def following(seq: int) -> Continuation | None:
        looked.append(seq)
        return Continuation(43, 5, [(100, more[0]), (101, more[1])]) if seq == 43 else None

    for result in driver.runner.execute(plan, lambda seq: word[0] >= seq, following):
        found.append(result)
        word[0] = 43 if result.seq + 1 >= recall else 0
    assert told(found) == wanted[: len(found)] and found[-1].last
    if recall == 41:
        assert len(found) <= 3 and looked == []
    else:
        assert looked == [43] and found[-1].seq <= recall + captured


@pytest.mark.parametrize("why", ["stop", "recall"])
def test_what_was_taken_and_cannot_be_run_is_stale(why: str, device: torch.device) -> None:
    driver, _ = engine("llama", device, captured=False)
    wanted = told(long_plan(engine("llama", device, captured=False)[0], 12))
    stops = (wanted[2][0][1],) if why == "stop" else ()
    plan, more = start(driver, 3, 12, stop_token_ids=stops)
    found, word = list[StepResult](), 0

    def following(seq: int) -> Continuation | None:
        nonlocal word
        word = 43 if why == "recall" else 0  # it comes with the last step
        return Continuation(43, 5, [(100, more[0])])

    steps = driver.runner.execute(plan, lambda seq: word >= seq, following)
    with pytest.raises(StaleSlot) as stale:
        for result in steps:
            found.append(result)
    assert stale.value.seq == 43 and told(found) == wanted[:3] and found[-1].last


@pytest.mark.parametrize(
    ("blocks", "steps", "message"),
    [
        ([], 12, "3 are needed"),
        ([512, 1], 12, "block ids"),
        ([-1, 1], 12, "block ids"),
        ([1] * 300, 12, "hold the longest"),
    ],
)
def test_what_points_outside_is_refused(blocks: list[int], steps: int, message: str, device: torch.device) -> None:
    driver, _ = engine("llama", device, captured=False)
    plan, _ = start(driver, 3, 30)
    found = list[StepResult]()
    with pytest.raises(PlanError, match=message) as refused:
        for result in driver.runner.execute(
            plan, lambda seq: False, lambda seq: Continuation(43, steps + 8, [(100, blocks)]) if seq == 43 else None
        ):
            found.append(result)
    assert refused.value.request == 100 and len(found) == 2


def test_penalties_count_over_both(device: torch.device) -> None:
    """What a row has said lives in its worker as long as its plan goes on."""
    settings = {"frequency_penalty": 1.5, "repetition_penalty": 1.3}
    wanted = told(with_history(engine("llama", device, captured=False)[0], 12, [], settings))
    assert told(with_history(engine("llama", device, captured=False)[0], 4, [3, 5], settings)) == wanted


def with_history(driver: Driver, steps: int, more: list[int], settings: dict[str, Any]) -> list[StepResult]:
    plan, _ = start(driver, 12, 12, **settings)
    row = plan.rows[0]
    history = [*random_prompt(PROMPTS[0], 4096, 0), *row.tokens]
    known = Row(
        100, row.tokens, row.start, row.block_table, outputs="last", sampling=row.sampling, output_index=1,
        history=history, prompt_len=PROMPTS[0],
    )  # fmt: skip
    seqs = [40 + steps + sum(more[:i]) for i in range(len(more))]
    return run(
        driver,
        StepPlan(40, steps, [known]),
        *(Continuation(seq, count, [(100, [])]) for seq, count in zip(seqs, more, strict=True)),
    )
