"""Replay: what a queue and a batch will have waited for, against queues whose answer is known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from semipd_agent.slo.load import Load
from semipd_agent.slo.replay import Job, Live, Machine, replay
from semipd_agent.slo.step_model import StepProfile
from semipd_engine.contract import Observation, Split

pytestmark = pytest.mark.unit
ALONE = Machine(step=0.01, row=0.0, position=0.0, prefill_speed=0.5, decode_speed=0.5, max_rows=64, kv_tokens=0)


def test_replay_of_prompts_alone_is_a_queue_with_constant_service() -> None:
    """M/D/1 (Kleinrock): the mean wait is rho / (2 mu (1 - rho)); the replay comes within 5 %."""
    rng, at, jobs = random.Random(4), 0.0, []
    for _ in range(60_000):
        at += rng.expovariate(0.7)
        jobs.append(Job(at, 1.0, 1, 1))
    waits = [outcome.ttft - 1.0 for outcome in replay(ALONE, jobs)]
    assert sum(waits) / len(waits) == pytest.approx(0.7 / (2 * 0.3), rel=0.05)


def test_replay_of_a_batch_alone_steps_with_its_rows() -> None:
    machine = replace(ALONE, step=0.01, row=0.001)
    live = [Live(0.0, 1, 11, 0), Live(0.0, 1, 21, 0)]
    first, second = replay(machine, [], live)
    assert first.tpot == pytest.approx(0.012)
    assert second.tpot == pytest.approx((10 * 0.012 + 10 * 0.011) / 20)


def test_replay_slows_both_while_both_are_busy_and_neither_alone() -> None:
    """A prompt of one second at half speed beside a row: two seconds; the row gets half its steps meanwhile."""
    prompt, row = replay(ALONE, [Job(0.0, 1.0, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert prompt.ttft == pytest.approx(2.0)
    assert row.tpot * 200 == pytest.approx(2.0 + 100 * 0.01)


def test_replay_holds_prompts_back_for_places_and_room() -> None:
    jobs = [Job(0.0, 0.1, 100, 101), Job(0.0, 0.1, 100, 2)]
    free = replay(ALONE, jobs)[1].ttft
    for machine in (replace(ALONE, max_rows=1), replace(ALONE, kv_tokens=150)):
        assert replay(machine, jobs)[1].ttft > free + 0.5


def test_replay_without_isolation_steps_rows_with_each_chunk() -> None:
    """A prompt of one second in chunks of 0.1 s beside a row: ten steps of 0.1 s + 1 ms, in each of which the row gets
    a token, and 10 ms + 1 ms for each of the others."""
    machine = replace(ALONE, row=0.001, chunk=0.1, chunk_tokens=10**6, prefill_speed=1.0, decode_speed=1.0)
    prompt, row = replay(machine, [Job(0.0, 1.0, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert prompt.ttft == pytest.approx(10 * 0.101)
    assert row.tpot * 200 == pytest.approx(10 * 0.101 + 190 * 0.011)
    slower, _ = replay(replace(machine, mixed=1.5), [Job(0.0, 1.0, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert slower.ttft == pytest.approx(1.5 * 10 * 0.101)
    short, _ = replay(machine, [Job(0.0, 0.005, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert short.ttft == pytest.approx(0.011), "a prompt that hides behind the weights takes one step"


def test_small_steps_without_isolation_pay_a_steps_fixed_part_more_often() -> None:
    """A prompt of ten chunks of the engine, 20 ms and 80 ms of tokens each: of a quarter it takes 40 steps of 40 ms."""
    quarter = Machine(0.01, 0.0, 0.0, 1.0, 1.0, 8, 0, chunk=0.025, chunk_tokens=10**6, chunk_base=0.02, chunk_rate=0.8)
    prompt, row = replay(quarter, [Job(0.0, 1.0, 1, 1)], [Live(0.0, 1, 41, 0)])
    assert prompt.ttft == pytest.approx(40 * 0.04) and row.tpot == pytest.approx(0.04)
    assert replay(quarter, [Job(0.0, 1.0, 1, 1)])[0].ttft == pytest.approx(40 * 0.04), "and where nothing decodes"


@pytest.mark.parametrize("tokens", [512, 256, 64])
def test_a_prompt_takes_as_long_in_mixed_steps_as_the_step_model_says_of_them(tokens: int) -> None:
    """Whatever their size; jobs count a prompt's work in chunks of the engine."""
    load = Load.of(StepProfile((5e-3, 7e-5, 0.0), (1e-3, 0.0, 0.0), measured=True))
    machine = load.machine(Split(mixed_tokens=tokens), Observation(core_id="c", at=0.0, prefill_chunk_tokens=512))
    prompt, _ = replay(
        replace(machine, chunk_tokens=10**9), [Job(0.0, load.work(4096, 512), 1, 1)], [Live(0.0, 1, 9999, 0)]
    )
    step = load.model.mixed_factor * load.model.mixed_seconds(tokens, 0, 1, 0)
    assert prompt.ttft == pytest.approx(4096 / tokens * step)


def test_prompts_that_wait_share_a_step_without_isolation() -> None:
    machine = replace(ALONE, chunk=0.1, chunk_tokens=10**6, prefill_speed=1.0, decode_speed=1.0)
    jobs = [Job(0.0, 0.004, 1, 1)] * 50
    last = replay(machine, jobs, [Live(0.0, 1, 2001, 0)])[49]
    assert last.ttft < 0.3, "one after the other in steps of their own they would take half a second"


def test_a_prompt_that_is_cached_whole_takes_no_time_without_isolation() -> None:
    """Beside a row: there is nothing to compute, and nothing to divide by."""
    machine = replace(ALONE, chunk=0.1, chunk_tokens=100, prefill_speed=1.0, decode_speed=1.0)
    cached, after, row = replay(machine, [Job(0.5, 0.0, 1, 1), Job(1.0, 0.1, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert cached.ttft == 0 and 0 < after.ttft < 0.5 and row.tpot > 0


def test_replay_lets_nobody_in_who_would_be_late_and_counts_it_as_a_miss_that_holds_up_nobody() -> None:
    gated = replace(ALONE, late=2.0)
    jobs = [Job(-1.0, 1.0, 1, 1), Job(-0.5, 1.0, 1, 1), Job(0.1, 1.0, 1, 1), Job(1.5, 1.0, 1, 1), Job(2.1, 1.0, 1, 1)]
    ttft = [round(outcome.ttft, 9) for outcome in replay(gated, jobs, now=0.0)]
    assert ttft == [2.0, 2.5, 4.0, 1.5, 1.9], "who waits already is served; the third is not let in, and costs no time"
    long = [Job(0.1, 50.0, 1, 1), Job(10.0, 1.0, 1, 1)]
    assert replay(gated, long)[0].ttft == pytest.approx(50.0), "the long prompt need not wait, so it is let in"
    assert [o.ttft for o in replay(replace(ALONE, late=1e9), jobs)] == [o.ttft for o in replay(ALONE, jobs)]
