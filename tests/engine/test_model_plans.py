"""Plans: when they end, what they refuse, and that pacing changes the pieces but not the tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.model_driver import Driver, assert_equal_to_reference, greedy, random_prompt
from torch.overrides import TorchFunctionMode

from e2e.lib import models
from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.worker.input_batch import PlanError
from semipd_engine.worker.model_runner import SAMPLE_SECONDS, SCORE_SECONDS, SCORED_AT_ONCE, NotFiniteError


class CountingPacer:
    """Counts quanta, and fails if one is opened inside another."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self.seconds = math.inf
        self.inside = False

    @contextmanager
    def quantum(self) -> Iterator[float]:
        assert not self.inside
        self.inside = True
        begin = time.perf_counter()
        try:
            yield self.seconds
        finally:
            self.inside = False
            self.durations.append(time.perf_counter() - begin)


@pytest.fixture(scope="module")
def model() -> Path:
    return models.random_model("llama")


def decode_plan(driver: Driver, max_steps: int, *samplings: Sampling) -> StepPlan:
    requests = [driver.request(random_prompt(10 + i, 4096, i), s) for i, s in enumerate(samplings)]
    driver.prefill(requests)
    rows = [
        Row(100 + i, r.tokens[:1], len(r.prompt), r.block_table, outputs="last", sampling=r.sampling, output_index=1)
        for i, r in enumerate(requests)
    ]
    return StepPlan(40, max_steps, rows)


def test_rows_end_at_max_tokens_and_stop_ids(model: Path, device: torch.device) -> None:
    driver = Driver(model, device=device)
    free = [step.tokens for step in driver.runner.execute(decode_plan(driver, 6, greedy(20)), lambda seq: False)]
    third = free[2][0].token
    assert third not in [free[0][0].token, free[1][0].token]
    stopping = Sampling(temperature=0, max_tokens=20, stop_token_ids=(third,))
    steps = list(driver.runner.execute(decode_plan(driver, 9, stopping, greedy(6)), lambda seq: False))
    assert [step.seq for step in steps] == [40, 41, 42, 43, 44]
    assert [len(step.tokens) for step in steps] == [2, 2, 2, 1, 1]
    assert [step.last for step in steps] == [False] * 4 + [True]
    assert steps[2].tokens[0].token == third
    assert {t.request for t in steps[3].tokens} == {101}


def test_a_recalled_plan_ends_after_its_step(model: Path, device: torch.device) -> None:
    driver = Driver(model, device=device)
    asked: list[int] = []

    def recalled(seq: int) -> bool:
        asked.append(seq)
        return len(asked) == 3

    steps = list(driver.runner.execute(decode_plan(driver, 8, greedy(20)), recalled))
    assert len(steps) == 3
    assert steps[-1].last
    assert set(asked) == {40}


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (Row(7, [], 0, [1]), "no tokens"),
        (Row(7, [1, 4096], 0, [1]), "token ids"),
        (Row(7, [1] * 17, 0, [1]), "2 are needed"),
        (Row(7, [1], 4096, [1] * 300), "position 4096"),
        (Row(7, [1], 0, [512]), "block ids"),
        (Row(7, [1, 2**31], 0, [1]), "token and block ids"),
        (Row(7, [1], 0, [2**64]), "token and block ids"),
        (Row(7, [1], 0, [1] * 300), "256 hold the longest"),
    ],
)
def test_a_plan_that_points_outside_is_refused(model: Path, chunk: Row, message: str, device: torch.device) -> None:
    with pytest.raises(PlanError, match=message) as error:
        list(Driver(model, device=device).runner.execute(StepPlan(0, 1, [chunk]), lambda seq: False))
    assert error.value.request == 7


def test_a_decode_row_may_hold_only_the_blocks_of_its_last_tokens(model: Path, device: torch.device) -> None:
    driver = Driver(model, device=device)
    for layer in range(driver.config.num_layers):
        for view in driver.kv.layer(layer):
            view[3] = 0
    row = Row(7, [5], 15, [3], outputs="last", sampling=greedy(2), output_index=1)
    assert len(list(driver.runner.execute(StepPlan(0, 8, [row]), lambda seq: False))) == 1
    row = Row(7, [5], 15, [3], outputs="last", sampling=greedy(9), output_index=1)
    with pytest.raises(PlanError, match="block table"):
        list(driver.runner.execute(StepPlan(0, 8, [row]), lambda seq: False))


def test_chunks_and_decode_rows_share_a_step(model: Path, device: torch.device) -> None:
    """A decode row beside a chunk in the middle of a prompt and a prompt's last chunk: each as if it ran alone."""
    driver = Driver(model, device=device)
    running, long, short = (driver.request(random_prompt(n, 4096, n), greedy(4)) for n in (37, 70, 5))
    driver.prefill([running])
    driver.step([running, long, short], [1, 40, 5])
    driver.step([running, long, short], [1, 30, 1])
    driver.step([long, short], [1, 1])
    driver.generate([running, long, short])
    assert_equal_to_reference(model, [running, long, short])


def test_a_masked_row_takes_an_allowed_token(model: Path, device: torch.device) -> None:
    driver = Driver(model, device=device)
    request = driver.request(random_prompt(9, 4096, 1), greedy(3))
    allowed = {5, 2047}
    mask = sum(1 << token for token in allowed).to_bytes(256, "little")  # shorter than the vocabulary

    def plan(steps: int) -> StepPlan:
        row = Row(7, request.prompt, 0, request.block_table, outputs="last", sampling=greedy(3), mask=mask)
        return StepPlan(0, steps, [row])

    (step,) = driver.runner.execute(plan(1), lambda seq: False)
    assert step.tokens[0].token in allowed
    with pytest.raises(PlanError, match="one step"):
        list(driver.runner.execute(plan(2), lambda seq: False))


def test_a_model_that_gives_no_number_says_so(model: Path, device: torch.device) -> None:
    driver = Driver(model, device=device)
    driver.arena["norm"][3] = float("nan")
    with pytest.raises(NotFiniteError, match="NaN") as error:
        driver.prefill([driver.request([1, 2, 3], greedy(3))])
    assert error.value.request
    scored = Row(7, [1, 2, 3], 0, [1], outputs="all", targets=[2, 3])
    with pytest.raises(NotFiniteError, match="NaN") as error:
        list(driver.runner.execute(StepPlan(0, 1, [scored]), lambda seq: False))
    assert error.value.request == 7


class Wide(TorchFunctionMode):
    """Notes what reads logits: its name, how many rows of them, and the quantum, None outside."""

    def __init__(self, pacer: CountingPacer) -> None:
        super().__init__()
        self._pacer = pacer
        self.seen: list[tuple[str, int, int | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("amax", "isfinite", "log_softmax", "topk") and args[0].shape[-1] == 4096:
            number = len(self._pacer.durations) if self._pacer.inside else None
            self.seen.append((name, args[0].numel() // 4096, number))
        return func(*args, **(kwargs or {}))


@pytest.mark.engine
@pytest.mark.parametrize("rows_each", [1, 5, 10_000])
def test_scored_and_sampled_rows_go_into_quanta(model: Path, rows_each: int) -> None:
    """Nothing as wide as the vocabulary is done outside a quantum, nor for more rows than one holds; all at once, as on
    a GPU, where it holds them all."""
    pacer = CountingPacer()
    driver = Driver(model, pacer=pacer)
    tokens = random_prompt(70, 4096, 1)
    plan = StepPlan(1, 1, [Row(7, tokens, 0, list(range(5)), outputs="all", targets=tokens[1:], target_logprobs=2)])
    with Wide(pacer) as wide:
        pacer.seconds = 1.5 * rows_each * SCORE_SECONDS * 4096
        (step,) = driver.runner.execute(plan, lambda seq: False)
    assert [len(each.top) for each in step.scores[0].logprobs] == [2] * 69
    scored = [(rows, number) for name, rows, number in wide.seen if name == "log_softmax"]
    most = min(int(1.5 * rows_each), SCORED_AT_ONCE)
    assert [rows for rows, _ in scored] == parts(SCORED_AT_ONCE, most) + parts(69 - SCORED_AT_ONCE, most)
    numbers = [number for _, number in scored]
    assert None not in numbers and len(set(numbers)) == len(numbers)

    pacer.seconds = math.inf
    plan = decode_plan(driver, 1, *(Sampling(temperature=0, max_tokens=5, logprobs=i % 2 - 1) for i in range(6)))
    with Wide(pacer) as wide:
        pacer.seconds = 1.5 * rows_each * SAMPLE_SECONDS * 4096
        (step,) = driver.runner.execute(plan, lambda seq: False)
    assert [result.logprobs is None for result in step.tokens] == [True, False] * 3
    assert [rows for name, rows, _ in wide.seen if name == "amax"] == parts(6, int(1.5 * rows_each))
    assert all(number is not None for _, _, number in wide.seen)


def parts(rows: int, most: int) -> list[int]:
    """So many rows by at most so many."""
    return [min(most, rows - begin) for begin in range(0, rows, most)]


@pytest.mark.engine
def test_pacing_changes_no_token(model: Path) -> None:
    pacer = CountingPacer()
    driver = Driver(model, pacer=pacer)
    pacer.seconds = 3e-4  # so that even this model is cut: columns, rows, sequences
    requests = [driver.request(random_prompt(n, 4096, n), greedy(8)) for n in (200, 65, 31, 3)]
    driver.prefill(requests, chunk_tokens=128)
    pieces = len(pacer.durations)
    while any(not r.done for r in requests):
        driver.decode(requests, 4)
    assert pieces > 3 * driver.config.num_layers
    assert_equal_to_reference(model, requests)
