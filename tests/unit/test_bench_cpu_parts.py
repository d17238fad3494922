"""`make bench-cpu`: what is asked in each part, and what the answers mean."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cpu import figures, parts
from bench.cpu.figures import UnusableError
from bench.cpu.plans import PROMPT, VICTIM, WORKLOADS, salted, spread_prompts
from bench.traffic import Record
from bench.traffic import plan as plans
from bench.traffic.records import HUNG_UP

pytestmark = pytest.mark.unit

MODEL = "llama-0.5b"
WORKLOAD = WORKLOADS[MODEL]
PARTS = parts.parts()


def stream(*times: float, label: str = "", planned: float = 0.0) -> Record:
    return Record(0, label, planned, planned, token_times=times, finish_reason="length", status=200)


def steady(begin: float, end: float, each: float, **more: str) -> Record:
    return stream(*(begin + n * each for n in range(1 + round((end - begin) / each))), **more)


def test_a_decode_rate_counts_only_while_all_streams_run() -> None:
    early, late = steady(0.0, 10.0, 0.1), steady(5.0, 15.0, 0.1)
    assert figures.decode_rate(WORKLOAD, [early, late])["tokens_per_s"] == pytest.approx(20, rel=0.03)
    with pytest.raises(UnusableError, match="only"):
        figures.decode_rate(WORKLOAD, [steady(0.0, 5.1, 0.1), late])


def test_a_stream_that_failed_makes_a_part_unusable() -> None:
    with pytest.raises(UnusableError, match="HTTP 500"):
        figures.decode_rate(WORKLOAD, [replace(steady(0, 9, 0.1), error="HTTP 500")])


CALM = [n / 10 for n in range(31)]
"""Times of tokens of a stream that nobody disturbs."""


def hung_up(*times: float, ended: float) -> Record:
    return replace(stream(*times, label=VICTIM), finish_reason=HUNG_UP, ended=ended)


def test_interference_counts_gaps_that_overlap_a_prompts_wait() -> None:
    """Quiet 0.1 s; the prompt waits from 3.05 to 4.05, in which a stream stalls once for 0.9 s. A stall after it is
    not its doing."""
    stalled = stream(*CALM, 3.9, 4.0, 4.1, 6.1, 6.2, label=VICTIM)
    other = stream(*CALM, *(3.1 + n / 5 for n in range(16)), label=VICTIM)
    prompt = stream(4.05, label=PROMPT, planned=3.05)
    found = figures.interference(WORKLOAD, [stalled, other, prompt])
    assert found["quiet_gap_ms"] == pytest.approx(100)
    assert found["longest_gap_ms"] == pytest.approx(900) and found["longest_gap_ratio"] == pytest.approx(9)
    assert found["ttft_ms"] == pytest.approx(1000)
    assert found["p50_gap_ms"] == pytest.approx(200)
    assert (found["prompts"], found["failed_prompts"], found["late_prompts"]) == (1, 0, 0)


def test_a_stall_that_lasts_until_the_streams_are_closed_is_the_longest_gap() -> None:
    stalled, other = hung_up(*CALM, 3.1, ended=9.1), hung_up(*CALM, *(3.1 + n / 10 for n in range(60)), ended=9.1)
    found = figures.interference(WORKLOAD, [stalled, other, stream(9.0, label=PROMPT, planned=3.05)])
    assert found["longest_gap_ms"] == pytest.approx(6000)


def test_a_prompt_that_fails_or_comes_too_late_stays_in_the_figures() -> None:
    """It was dropped once: of a split that starves prompts only the lucky one was shown."""
    victim = hung_up(*(n / 10 for n in range(130)), ended=13.0)
    served = stream(4.0, label=PROMPT, planned=3.0)
    late = stream(15.0, label=PROMPT, planned=8.0)
    failed = Record(3, PROMPT, 4.0, 4.0, status=500, error="HTTP 500", ended=4.1)
    never = stream(20.0, label=PROMPT, planned=14.0)  # began when the streams had gone
    found = figures.interference(WORKLOAD, [victim, victim, served, late, never])
    assert (found["prompts"], found["late_prompts"]) == (2, 1) and found["ttft_ms"] == pytest.approx(4000)
    found = figures.interference(WORKLOAD, [victim, victim, served, failed])
    assert (found["prompts"], found["failed_prompts"]) == (2, 1)
    assert found["ttft_ms"] == pytest.approx((1000 + 9000) / 2), "a prompt that failed waited for ever, not 0.1 s"


def test_no_prompt_that_began_beside_a_stream_says_nothing() -> None:
    with pytest.raises(UnusableError, match="no prompt"):
        figures.interference(WORKLOAD, [steady(0, 4, 0.1, label=VICTIM), stream(9.0, label=PROMPT, planned=5.0)])


def test_undisturbed_streams_are_read_outside_their_first_seconds() -> None:
    """A stall of 0.4 s at 5.0 counts; one of 0.9 s at 8.0 is while another stream has just come."""
    times = [*(n / 10 for n in range(51)), *(5.4 + n / 10 for n in range(27)), *(8.9 + n / 10 for n in range(20))]
    later = replace(steady(8.1, 12.0, 0.1, label=VICTIM), planned=7.9, sent=7.9)
    found = figures.undisturbed(WORKLOAD, [stream(*times, label=VICTIM), later])
    assert (found["quiet_gap_ms"], found["longest_gap_ms"]) == (pytest.approx(100), pytest.approx(400))
    assert found["longest_gap_ratio"] == pytest.approx(4)
    with pytest.raises(UnusableError, match="first seconds"):
        figures.undisturbed(WORKLOAD, [steady(0.1, 1.0, 0.1, label=VICTIM)])


def test_goodput_counts_what_failed() -> None:
    good = steady(0.5, 2.5, 0.1)
    found = figures.goodput(WORKLOAD, [good, good, steady(9.0, 11.0, 0.1), replace(good, error="HTTP 500", status=500)])
    assert found["attainment_percent"] == 50 and found["failed"] == 1
    assert found["goodput_per_s"] == pytest.approx(2 / 11)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_each_part_asks_new_prompts_of_the_same_size_every_round(part: parts.Part) -> None:
    one, two = part.plan(WORKLOAD, 1), part.plan(WORKLOAD, 2)
    assert part.plan(WORKLOAD, 1) == one
    assert not {r.prompt for r in one} & {r.prompt for r in two}
    assert len({r.prompt for r in one}) == len(one)
    plans.check(one)


def test_a_salt_changes_every_prompt_and_nothing_else() -> None:
    plan = PARTS["poisson"].plan(WORKLOAD, 1)
    other = salted(plan, 123_456)
    assert [replace(r, prompt=(1,)) for r in plan] == [replace(r, prompt=(1,)) for r in other]
    assert all(
        len(a.prompt) == len(b.prompt) and a.prompt[:1] != b.prompt[:1] for a, b in zip(plan, other, strict=True)
    )
    assert all(1_000 <= int(token) < 9_000 for request in other for token in request.prompt)


def test_victims_wait_for_spread_prompts_however_slow_they_are() -> None:
    plan = spread_prompts(2, 13.0)(WORKLOADS["llama-0.5b"], 3)
    victims = [r for r in plan if r.label == VICTIM]
    assert [r.label for r in plan[2:]] == [PROMPT, PROMPT] and plan[3].after == 2
    assert all(v.outlasts == 3 and v.hang_up == 65.0 for v in victims)


def test_chained_prompts_end_before_their_victims() -> None:
    plan = PARTS["back-to-back"].plan(WORKLOAD, 1)
    victims, prompts = [r for r in plan if r.label == VICTIM], [r for r in plan if r.label == PROMPT]
    assert all(v.not_after is not None and v.not_after >= max(p.not_after or 60.0 for p in prompts) for v in victims)
    assert all(p.not_after is not None and p.not_after < 60.0 for p in prompts)
    assert [p.after for p in prompts][:3] == [None, len(victims), len(victims) + 1]


def test_a_prompt_never_waits_behind_another() -> None:
    first, second = PARTS["interference"].plan(WORKLOAD, 1)[2:]
    assert first.after is None and second.after == 2


def test_a_long_parts_streams_are_renewed_before_their_context_ends() -> None:
    known = parts.parts(back_to_back=60, long_seconds=60)
    plan = known["long-mix"].plan(WORKLOAD, 1)
    assert [r for r in known["back-to-back"].plan(WORKLOAD, 1) if r.label == VICTIM] == plan[
        : -sum(r.label == PROMPT for r in plan)
    ]
    victims = [r for r in plan if r.label == VICTIM]
    assert {len(v.prompt) + v.max_tokens for v in victims} == {664} and sum(v.after is None for v in victims) == 2
    assert {len(r.prompt) for r in plan if r.label == PROMPT} == {512, 2000, 8000}
