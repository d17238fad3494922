"""Algorithm 1 on tables: the four SLO cases, overflow, bounds, step limit, guard, dwell, few samples."""

from __future__ import annotations

import itertools
import random

import pytest

from semipd_agent.contract import SLO, Bounds, DecisionReason
from semipd_agent.slo.algorithm1 import Algorithm1, Constants
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.policy import Move, Verdict, clamp, decode_share
from semipd_agent.slo.preparation import Preparation, Unready
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import Arrival, FinishedRequest, Split

pytestmark = pytest.mark.unit

SLOS = SLO(ttft_milliseconds=1000, tpot_milliseconds=110)
"""With the margin of 1.1, TPOT fails above 100 ms."""
FREE = Bounds()
HALF = Split(prefill=100, decode=100)


def requests(now: float, ttft: float, tpot: float | None, n: int = 30) -> tuple[FinishedRequest, ...]:
    return tuple(
        FinishedRequest(
            cursor=i,
            finished_at=now - 5 + 5 * i / n,
            prompt_tokens=100,
            cached_tokens=0,
            output_tokens=2 if tpot else 1,
            ttft_seconds=ttft,
            tpot_seconds=tpot,
            finish_reason="stop",
        )
        for i in range(n)
    )


def drive(
    policy: Algorithm1,
    split: Split,
    ttft: float,
    tpot: float | None,
    *,
    bounds: Bounds = FREE,
    n: int = 30,
    start: float = 1000.0,
    seconds: int = 6,
    obey: bool = False,
    preparation: Preparation | None = None,
) -> tuple[list[Move], Verdict]:
    """Ticks with the same latencies in every window; with `obey` the moves are carried out."""
    moves: list[Move] = []
    verdict = Verdict()
    for second in range(seconds):
        now = start + second
        evidence = Evidence(finished=requests(now, ttft, tpot, n), preparation=preparation)
        verdict = policy.observe(evidence, split, bounds, now)
        if verdict.move is not None:
            moves.append(verdict.move)
            if obey:
                split = verdict.move.to
    return moves, verdict


def first_move(split: Split, ttft: float, tpot: float | None, *, bounds: Bounds = FREE, n: int = 30) -> Move | None:
    moves, _ = drive(Algorithm1(SLOS, split), split, ttft, tpot, bounds=bounds, n=n)
    return moves[0] if moves else None


@pytest.mark.parametrize(
    ("ttft", "tpot", "to", "reason"),
    [
        (0.5, 0.05, None, None),
        (9.0, 0.03, Split(prefill=100, decode=70), DecisionReason.TTFT_ABOVE_TARGET),
        (0.1, 0.90, Split(prefill=70, decode=100), DecisionReason.TPOT_ABOVE_TARGET),
        (9.0, 0.90, None, None),
    ],
    ids=["both pass", "only TTFT fails", "only TPOT fails", "both fail"],
)
def test_the_four_cases(ttft: float, tpot: float, to: Split | None, reason: DecisionReason | None) -> None:
    move = first_move(HALF, ttft, tpot)
    assert (move.to if move else None) == to
    assert (move.reason if move else None) == reason
    if move:
        observed, target = (ttft, 1.0) if reason is DecisionReason.TTFT_ABOVE_TARGET else (tpot, 0.11)
        assert (move.observed_seconds, move.target_seconds) == (observed, target)


def test_what_could_not_be_prepared_is_stepped_over() -> None:
    """And where nothing else is left, it stays."""
    refused = Preparation((100,), (100,), unready=(Unready(None, 70),))
    moves, _ = drive(Algorithm1(SLOS, HALF), HALF, 9.0, 0.03, preparation=refused)
    assert moves[0].to == Split(prefill=100, decode=60)
    narrow, only = Bounds(min_decode_percent=90), Preparation((100,), (100,), unready=(Unready(None, 90),))
    assert drive(Algorithm1(SLOS, HALF), HALF, 9.0, 0.03, bounds=narrow)[0]
    moves, _ = drive(Algorithm1(SLOS, HALF), HALF, 9.0, 0.03, bounds=narrow, preparation=only)
    assert not moves


def test_what_is_older_than_the_split_is_no_evidence_for_a_new_policy() -> None:
    before = Evidence(finished=requests(1000.0, 9.0, 0.03))

    def moves(policy: Algorithm1) -> list[Move]:
        verdicts = [policy.observe(before, HALF, FREE, 1000.0 + second) for second in range(8)]
        return [verdict.move for verdict in verdicts if verdict.move is not None]

    assert moves(Algorithm1(SLOS, HALF, since=900.0))
    assert not moves(Algorithm1(SLOS, HALF, since=1000.0))


@pytest.mark.parametrize(
    ("split", "ttft", "tpot", "to"),
    [
        (Split(prefill=60, decode=40), 9.0, 0.02, Split(prefill=90, decode=40)),
        (Split(prefill=40, decode=60), 0.1, 0.90, Split(prefill=40, decode=90)),
        (Split(prefill=85, decode=60), 9.0, 0.02, Split(prefill=100, decode=40)),
        (Split(prefill=100, decode=60), 9.0, 0.02, Split(prefill=100, decode=30)),
        (Split(prefill=60, decode=85), 0.1, 0.90, Split(prefill=40, decode=100)),
    ],
)
def test_a_raise_that_would_overflow_lowers_the_other_side(split: Split, ttft: float, tpot: float, to: Split) -> None:
    move = first_move(split, ttft, tpot)
    assert move is not None and move.to == to


@pytest.mark.parametrize(
    ("bounds", "split", "to"),
    [
        (Bounds(min_decode_percent=85), HALF, Split(prefill=100, decode=90)),
        (Bounds(min_decode_percent=95), HALF, None),
        (Bounds(max_prefill_percent=80), Split(prefill=75, decode=60), Split(prefill=80, decode=30)),
        (Bounds(max_prefill_percent=80, min_decode_percent=55), Split(prefill=75, decode=60), None),
    ],
)
def test_moves_stay_within_the_bounds(bounds: Bounds, split: Split, to: Split | None) -> None:
    move = first_move(split, 9.0, 0.01, bounds=bounds)
    assert (move.to if move else None) == to


def test_random_walks_never_leave_the_bounds() -> None:
    rng = random.Random(5)
    bounds = Bounds(min_prefill_percent=35, max_prefill_percent=95, min_decode_percent=20, max_decode_percent=80)
    for _ in range(60):
        split = clamp(Split(prefill=rng.randint(1, 100), decode=rng.randint(1, 100)), bounds)
        policy, now = Algorithm1(SLOS, split), 1000.0
        for _ in range(8):
            ttft, tpot = rng.choice([(9.0, 0.01), (0.01, 0.9), (0.1, 0.01)])
            moves, _ = drive(policy, split, ttft, tpot, bounds=bounds, start=now, seconds=7)
            split, now = (moves[0].to if moves else split), now + 40
            assert clamp(split, bounds) == split


def test_a_small_miss_takes_a_small_step() -> None:
    """The loop ends where the estimate passes: 5 % too slow needs one step, not three."""
    move = first_move(HALF, 1.05, 0.03)
    assert move is not None and move.to == Split(prefill=100, decode=90)


def test_a_move_stops_before_it_breaks_the_other_slo() -> None:
    """TPOT at 95 of 100 ms leaves room for one step at most; at 99 for none."""
    near = first_move(HALF, 9.0, 0.095)
    assert near is not None and near.to == Split(prefill=100, decode=90)
    moves, verdict = drive(Algorithm1(SLOS, HALF), HALF, 9.0, 0.099, seconds=20)
    assert moves == []
    assert (verdict.feasible, verdict.feasible_reason) == (False, "TTFTBound")


def test_both_failing_is_reported_as_infeasible_and_clears() -> None:
    policy = Algorithm1(SLOS, HALF)
    _, verdict = drive(policy, HALF, 9.0, 0.9, seconds=5)
    assert (verdict.feasible, verdict.feasible_reason) == (None, "Doubtful")
    _, verdict = drive(policy, HALF, 9.0, 0.9, seconds=10, start=1005)
    assert (verdict.feasible, verdict.feasible_reason) == (False, "Overloaded")
    _, verdict = drive(policy, HALF, 0.1, 0.01, seconds=20, start=1015)
    assert verdict.feasible is False
    _, verdict = drive(policy, HALF, 0.1, 0.01, seconds=15, start=1035)
    assert (verdict.feasible, verdict.feasible_reason) == (True, "")


@pytest.mark.parametrize(("n", "moves"), [(0, False), (1, False), (9, False), (10, True)])
def test_fewer_than_ten_samples_move_nothing(n: int, moves: bool) -> None:
    assert (first_move(HALF, 9.0, 0.01, n=n) is not None) is moves


def test_without_any_tpot_the_split_may_still_move() -> None:
    move = first_move(HALF, 9.0, None)
    assert move is not None and move.to == Split(prefill=100, decode=70)


def test_a_target_that_is_absent_cannot_fail() -> None:
    policy = Algorithm1(SLO(tpot_milliseconds=110), HALF)
    assert drive(policy, HALF, 99.0, 0.01)[0] == []


def test_one_bad_moment_moves_nothing() -> None:
    policy = Algorithm1(SLOS, HALF)
    assert drive(policy, HALF, 9.0, 0.01, seconds=3)[0] == []
    assert drive(policy, HALF, 0.1, 0.01, seconds=3, start=1003)[0] == []
    assert drive(policy, HALF, 9.0, 0.01, seconds=4, start=1006)[0] == []


def test_two_moves_are_a_dwell_and_ten_new_samples_apart() -> None:
    policy = Algorithm1(SLOS, HALF)
    times: list[float] = []
    split = HALF
    for second in range(60):
        now = 1000.0 + second
        evidence = Evidence(finished=tuple(r for r in requests(now, 0.9 * 9, 0.01, 40)))
        verdict = policy.observe(evidence, split, FREE, now)
        if verdict.move:
            times.append(now)
            split = verdict.move.to
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times and all(gap >= Constants().dwell for gap in gaps)


def test_samples_from_before_a_move_do_not_count_after_it() -> None:
    policy = Algorithm1(SLOS, HALF)
    drive(policy, HALF, 0.1, 0.01, seconds=2)
    now, split = 1010.0, Split(prefill=100, decode=70)
    old = requests(now, 9.0, 0.01)  # received 9 s earlier, under the split of then
    for second in range(20):
        assert policy.observe(Evidence(finished=old), split, FREE, now + second * 0.1).move is None


def test_a_flood_is_seen_before_its_first_token() -> None:
    """Nothing has finished; twelve requests have waited 2 s for a target of 1 s."""
    policy = Algorithm1(SLOS, HALF)
    arrivals = tuple(Arrival(at=1000.0, prompt_tokens=4000) for _ in range(12))
    moved = []
    for second in range(1, 8):
        evidence = Evidence(arrivals=arrivals, waiting=(1000.0,) * 12)
        if policy.observe(evidence, HALF, FREE, 1000.0 + second).move:
            moved.append(second)
    assert moved and moved[0] <= 7


def test_hysteresis_suppresses_a_move_without_effect() -> None:
    """Raising x from 1 to 2 of a hundred beside y = 100 changes prefill's share by under two points."""
    policy = Algorithm1(SLOS, HALF, Constants(max_steps=1), Grid(step=1))
    assert drive(policy, HALF, 9.0, 0.01)[0] == []


def test_prompts_that_wait_for_decodes_room_ask_for_decode() -> None:
    """Both fail, but TTFT only because the batch is full of requests that a starved decode does not finish."""
    split = Split(prefill=100, decode=30)

    def moves(held_back: bool) -> list[Split]:
        policy = Algorithm1(SLOS, HALF)
        evidence = [Evidence(finished=requests(now, 9.0, 0.9), held_back=held_back) for now in range(1000, 1012)]
        verdicts = [policy.observe(e, split, FREE, 1000.0 + tick) for tick, e in enumerate(evidence)]
        return [verdict.move.to for verdict in verdicts if verdict.move is not None]

    assert moves(held_back=False) == []
    assert moves(held_back=True)[0] == Split(prefill=100, decode=60)


def test_a_last_step_just_before_the_load_turns_is_taken_back_all_the_same() -> None:
    policy = Algorithm1(SLOS, HALF)
    split, now, reasons = HALF, 1000.0, []

    def run(seconds: int, prompts: int, ttft: float) -> None:
        nonlocal split, now
        for _ in range(seconds):
            now += 1
            arrivals = tuple(Arrival(at=now - 60 * i / prompts, prompt_tokens=1000) for i in reversed(range(prompts)))
            evidence = Evidence(finished=requests(now, ttft, 0.03), arrivals=arrivals)
            if (move := policy.observe(evidence, split, FREE, now).move) is not None:
                split = move.to
                reasons.append(move.reason)

    run(20, 60, 9.0)
    run(60, 60, 0.9)
    run(20, 60, 9.0)
    assert set(reasons) == {DecisionReason.TTFT_ABOVE_TARGET} and len(reasons) > 1
    run(60, 20, 0.1)
    assert reasons[-1] is DecisionReason.HEADROOM_RECLAIMED


def test_feasibility_follows_the_one_target_that_is_set_and_is_forgotten_without_traffic() -> None:
    """With TPOT alone no TTFT sample is waited for; and a verdict does not outlive the traffic that it was made of."""
    policy = Algorithm1(SLO(tpot_milliseconds=110), HALF)
    _, verdict = drive(policy, HALF, 0.1, 9.0, bounds=Bounds(min_prefill_percent=100), seconds=20)
    assert (verdict.feasible, verdict.feasible_reason) == (False, "TPOTBound")
    _, verdict = drive(policy, HALF, 0.1, 0.02, start=1020.0, seconds=40)
    assert verdict.feasible is True
    drive(policy, HALF, 0.1, 9.0, bounds=Bounds(min_prefill_percent=100), start=1060.0, seconds=20)
    for second in range(40):
        verdict = policy.observe(Evidence(), HALF, FREE, 1080.0 + second)
    assert verdict.feasible is None


def test_prompts_that_wait_for_room_are_not_answered_with_more_prefill() -> None:
    """The batch or the cache is full: TTFT fails, and giving prefill more would only slow what frees the room."""
    policy, split = Algorithm1(SLOS, HALF), HALF
    for second in range(30):
        evidence = Evidence(finished=requests(1000.0 + second, 5.0, 0.09), waiting=(999.0,) * 9, held_back=True)
        move = policy.observe(evidence, split, FREE, 1000.0 + second).move
        split = move.to if move else split
    assert decode_share(split) >= decode_share(HALF)


def test_a_mild_failure_that_lasts_is_answered() -> None:
    """One request in five misses, which no window of 20 samples can tell from one in ten: two minutes can."""
    policy, moves = Algorithm1(SLOS, HALF), 0
    stream = [
        r.model_copy(update={"ttft_seconds": 2.0 if i % 5 == 0 else 0.5, "finished_at": 900.0 + i, "cursor": i})
        for i, r in enumerate(requests(1000.0, 0.5, 0.02, n=200))
    ]
    for second in range(130):
        now = 900.0 + second
        seen = tuple(r for r in stream if now - 120 <= r.finished_at <= now)
        moves += policy.observe(Evidence(finished=seen), HALF, FREE, now).move is not None
    assert moves >= 1
