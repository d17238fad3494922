"""Decode steps as programs: the same tokens with rows of padding beside them, nothing else written, nothing made anew.

On a CPU a program is the step's own function, run again on the buffers of its capture: what it takes from anywhere else
is as old as the capture. On a GPU it is a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.engine.model_driver import BLOCK_SIZE, Driver, random_prompt

from e2e.lib import models
from semipd_engine.ipc.steps import Row, StepPlan, StepResult
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.kernels import Kernels, choose
from semipd_engine.model.decoder import Decoder
from semipd_engine.pacing.quantum import Unpaced
from semipd_engine.worker import warm_up as gate
from semipd_engine.worker.decode_graphs import SIZES, CudaCapture, DecodeGraphs, Queue
from semipd_engine.worker.model_runner import ModelRunner, NotFiniteError
from semipd_engine.worker.servable import UnfitError
from semipd_engine.worker.warm_up import warm_up

Captured = Callable[[Queue], Queue]


class Programs:
    """A capture that counts, and a device's own where there is one."""

    def __init__(self, device: torch.device) -> None:
        self.made, self.replays = 0, 0
        self._capture: Captured = CudaCapture() if device.type == "cuda" else same_memory

    def __call__(self, queue: Queue) -> Queue:
        self.made += 1
        program = self._capture(queue)

        def replay() -> object:
            self.replays += 1
            return program()

        return replay


def same_memory(queue: Queue) -> Queue:
    at = queue().data_ptr()  # type: ignore[attr-defined]

    def replay() -> None:
        assert queue().data_ptr() == at, "a graph would have written elsewhere"  # type: ignore[attr-defined]

    return replay


def engine(family: str, device: torch.device, *, captured: bool) -> tuple[Driver, Programs]:
    kernels: Kernels = choose(device.type)
    driver, programs = Driver(models.random_model(family), device=device, kernels=kernels), Programs(device)
    if captured:
        longest = driver.config.max_position_embeddings
        driver.runner = ModelRunner(
            driver.config, driver.arena, driver.kv, kernels, Unpaced(), longest, capture=programs
        )
    return driver, programs


def decode(driver: Driver, lengths: list[int], steps: int, **sampling: Any) -> list[StepResult]:
    """Rows of these many tokens still to come, after prompts of several lengths."""
    return list(decoding(driver, lengths, steps, **({"logprobs": 2} | sampling)))


def decoding(
    driver: Driver, lengths: list[int], steps: int, recalled: Callable[[int], bool] = lambda seq: False, **sampling: Any
) -> Iterator[StepResult]:
    settings = [
        Sampling(**({"temperature": 0, "max_tokens": length + 1, "seed": i} | sampling))
        for i, length in enumerate(lengths)
    ]
    requests = [driver.request(random_prompt(10 + 7 * i, 4096, i), one) for i, one in enumerate(settings)]
    driver.prefill(requests)
    rows = [
        Row(100 + i, r.tokens[:1], len(r.prompt), r.block_table, outputs="last", sampling=r.sampling, output_index=1)
        for i, r in enumerate(requests)
    ]
    return driver.runner.execute(StepPlan(40, steps, rows), recalled)


def told(results: list[StepResult]) -> list[list[tuple[int, int]]]:
    return [[(token.request, token.token) for token in result.tokens] for result in results]


@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v2"])
def test_tokens_are_those_of_the_kernels_one_by_one(family: str, device: torch.device) -> None:
    """Seven rows that end one after the other: programs of eight, four, two and one, most of them with padding."""
    lengths = [3, 9, 5, 9, 6, 2, 8]
    eager, _ = engine(family, device, captured=False)
    wanted = decode(eager, lengths, 9)
    driver, programs = engine(family, device, captured=True)
    found = decode(driver, lengths, 9)
    assert told(found) == told(wanted) and len(found) == 9
    assert (programs.made, programs.replays) == (len(SIZES), 9), "all made at the start, and none again"
    for mine, theirs in zip(found, wanted, strict=True):
        for one, other in zip(mine.tokens, theirs.tokens, strict=True):
            assert one.logprobs is not None and other.logprobs is not None
            assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-4)


@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("family", ["llama", "deepseek_v2"])
def test_tokens_are_the_same_where_steps_begin_before_they_are_known(
    family: str, drawn: dict[str, Any], device: torch.device
) -> None:
    """Rows that end one after the other, by their length or at a token that they are told to stop at."""
    lengths = [3, 9, 5, 9, 6, 2, 8]
    eager, _ = engine(family, device, captured=False)
    wanted = told(decode(eager, lengths, 9, logprobs=-1, **drawn))
    for stops in ((), (wanted[3][1][1],), (wanted[1][0][1], wanted[6][-1][1])):
        eager, _ = engine(family, device, captured=False)
        plain = told(decode(eager, lengths, 9, logprobs=-1, stop_token_ids=stops, **drawn))
        driver, programs = engine(family, device, captured=True)
        assert told(decode(driver, lengths, 9, logprobs=-1, stop_token_ids=stops, **drawn)) == plain
        assert len(plain) <= programs.replays <= len(plain) + 1, "each step once, and one behind the last at most"


def test_the_next_step_has_begun_when_a_steps_tokens_are_told(device: torch.device) -> None:
    driver, programs = engine("llama", device, captured=True)
    replays = [programs.replays for _ in decoding(driver, [9, 4, 9], 6)]
    # Whose length ends with a step is in no further one; the others' has begun.
    assert replays == [2, 3, 4, 5, 6, 6]


def test_a_recall_ends_a_plan_with_the_step_that_has_begun(device: torch.device) -> None:
    wanted = told(decode(engine("llama", device, captured=False)[0], [9, 9], 8, logprobs=-1))
    driver, programs = engine("llama", device, captured=True)
    results = list[StepResult]()
    for result in decoding(driver, [9, 9], 8, lambda seq: len(results) >= 3):
        results.append(result)
    assert told(results) == wanted[:4] and programs.replays == 4
    assert [result.last for result in results] == [False] * 3 + [True]


def test_a_row_that_stopped_is_written_once_more_within_its_own_blocks(device: torch.device) -> None:
    """And before the plan's last step is told: core gives its blocks to others then."""
    eager, _ = engine("llama", device, captured=False)
    stop = told(decode(eager, [9], 9, logprobs=-1))[2][0][1]
    eager, _ = engine("llama", device, captured=False)
    count = len(decode(eager, [9], 9, logprobs=-1, stop_token_ids=(stop,)))
    driver, programs = engine("llama", device, captured=True)
    for result in decoding(driver, [9], 9, stop_token_ids=(stop,)):
        if result.last:
            assert programs.replays == count + 1 <= 4
            differs = torch.zeros(len(driver.kv.layer(0)[0]), dtype=torch.bool, device=device)
            for mine, theirs in zip(driver.kv.layer(0), eager.kv.layer(0), strict=True):
                same = (mine == theirs) | (mine.isnan() & theirs.isnan())
                differs |= ~same.flatten(1).all(dim=1)
            assert int(differs.sum()) == 1 and int(differs.nonzero()) not in driver._free


def test_a_step_without_numbers_is_named_before_its_tokens_are_used(device: torch.device) -> None:
    driver, _ = engine("llama", device, captured=True)
    steps = decoding(driver, [9, 9], 8)
    next(steps)
    driver.arena["norm"].fill_(float("nan"))
    next(steps)  # had begun
    with pytest.raises(NotFiniteError) as found:
        next(steps)
    assert found.value.request == 100


def test_rows_of_padding_write_nothing(device: torch.device) -> None:
    """Three rows in a program of four: of the pool only their own slots change."""
    driver, _ = engine("llama", device, captured=True)
    before = driver.kv.region.data.clone()
    results = decode(driver, [1, 1, 1], 1)
    assert len(results[0].tokens) == 3
    eager, _ = engine("llama", device, captured=False)
    assert torch.equal(before, eager.kv.region.data)
    decode(eager, [1, 1, 1], 1)
    untouched = eager.kv.region.data == before
    assert torch.equal(driver.kv.region.data[untouched], before[untouched])


def test_a_long_prompt_in_between_moves_no_programs_memory(device: torch.device) -> None:
    driver, programs = engine("llama", device, captured=True)
    first = told(decode(driver, [4, 4], 4))
    request = driver.request(random_prompt(300, 4096, 77), Sampling(temperature=0, max_tokens=2))
    driver.prefill([request])
    assert told(decode(driver, [4, 4], 4)) == first
    assert programs.made == len(SIZES)


def test_what_no_program_holds_runs_as_before(device: torch.device) -> None:
    driver, programs = engine("llama", device, captured=True)
    graphs = driver.runner.graphs
    assert graphs is not None and graphs.fits(64) and not graphs.fits(65)
    request = driver.request(random_prompt(40, 4096, 3), Sampling(temperature=0, max_tokens=2))
    driver.prefill([request])
    assert programs.replays == 0, "a chunk is none of theirs"
    row = Row(1, [5], 0, request.block_table, outputs="all", targets=[7], target_logprobs=1)
    results = list(driver.runner.execute(StepPlan(50, 1, [row]), lambda seq: False))
    assert programs.replays == 0 and len(results[0].scores) == 1, "nor a row whose targets are scored"


@pytest.mark.parametrize("slip", ["stale", "raises"])
def test_a_program_that_gives_other_numbers_is_unfit(slip: str, device: torch.device) -> None:
    def wrong(queue: Queue) -> Queue:
        if slip == "raises":
            raise RuntimeError("operation not permitted when stream is capturing")
        queue()
        return lambda: None  # the logits are those of whoever ran last

    driver, _ = engine("llama", device, captured=False)
    with pytest.raises(UnfitError) as refused:
        warm_up(driver.config, driver.arena, choose(device.type), driver.kv.layout, wrong)
    assert refused.value.reason == "WrongGraphs" and "SEMIPD_GPU_GRAPHS" in str(refused.value)


def test_programs_that_are_right_pass_the_gate(device: torch.device) -> None:
    driver, programs = engine("llama", device, captured=False)
    warm_up(driver.config, driver.arena, choose(device.type), driver.kv.layout, programs)
    assert (programs.made, programs.replays) == (3, 3)


def test_the_gates_tables_are_as_wide_as_those_that_serve(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their width decides whether attention splits a context, by kernels of its own."""
    widths: list[int] = []

    def noted(decoder: Decoder, kernels: Kernels, where: torch.device, most_blocks: int, *rest: Any) -> DecodeGraphs:
        widths.append(most_blocks)
        return DecodeGraphs(decoder, kernels, where, most_blocks, *rest)

    monkeypatch.setattr(gate, "DecodeGraphs", noted)
    driver, programs = engine("llama", device, captured=False)
    warm_up(driver.config, driver.arena, choose(device.type), driver.kv.layout, programs)
    assert widths == [-(-driver.config.max_position_embeddings // BLOCK_SIZE)]
