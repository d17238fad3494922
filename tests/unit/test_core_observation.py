"""What core tells a controller: time is integrated, steps are summed by kind, nobody waits for a request to end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd_engine.contract import Observation, Phase, Split
from semipd_engine.core.observation import KINDS_KEPT, Limits, Observer, StepSize
from semipd_engine.core.request import Request, RequestState
from semipd_engine.ipc.tokens import Sampling

pytestmark = pytest.mark.unit
ONE = StepSize(rows=1, tokens=1, context=100)
CHUNK = StepSize(rows=1, tokens=256, context=32768)


def request(id: int, at: float = 0.0, prompt: int = 10) -> Request:
    return Request(id, "", [0] * prompt, Sampling(max_tokens=9), at)


def seen(observer: Observer, now: float, since: int = 0) -> Observation:
    return observer.observation(now, since, (), (), Limits())


def test_busy_time_is_integrated_and_shared_time_told_apart() -> None:
    """Prefill 10-14, decode 12-13 and 13-16: two seconds shared, however the agent polls."""
    observer = Observer("c")
    observer.step_began(Phase.PREFILL, CHUNK, Split(), 10.0)
    observer.step_began(Phase.DECODE, ONE, Split(), 12.0)
    assert seen(observer, 12.5).busy_seconds == {Phase.PREFILL: 2.5, Phase.DECODE: 0.5}
    observer.step_ended(Phase.DECODE, 13.0)
    observer.step_began(Phase.DECODE, ONE, Split(), 13.0)
    observer.step_ended(Phase.PREFILL, 14.0)
    observer.step_ended(Phase.DECODE, 16.0)
    o = seen(observer, 20.0)
    assert o.busy_seconds == {Phase.PREFILL: 4.0, Phase.DECODE: 4.0}
    assert o.shared_seconds == 2.0
    prefill, decode = sorted(o.steps, key=lambda s: s.phase, reverse=True)
    assert (prefill.steps, prefill.tokens, prefill.alone_seconds, prefill.shared_seconds) == (1, 256, 2.0, 2.0)
    assert (decode.steps, decode.tokens, decode.alone_seconds, decode.shared_seconds) == (2, 2, 2.0, 2.0)


def test_steps_of_a_lost_worker_teach_nothing_but_the_time_was_spent() -> None:
    observer = Observer("c")
    observer.step_began(Phase.PREFILL, CHUNK, Split(), 10.0)
    observer.step_lost(Phase.PREFILL, 13.0)
    observer.step_ended(Phase.PREFILL, 14.0)
    o = seen(observer, 15.0)
    assert o.steps == () and o.busy_seconds[Phase.PREFILL] == 3.0


def test_arrivals_are_bounded_although_nobody_asks_for_them() -> None:
    observer = Observer("c")
    for n in range(1000):
        observer.arrived(request(n, at=float(n)))
    assert [arrival.id for arrival in observer.arrivals(0.0)] == list(range(939, 1000))


def test_a_step_with_prompts_and_rows_is_a_kind_of_its_own() -> None:
    """Three rows that read 300 positions, and a chunk of 100 tokens."""
    observer, split = Observer("c"), Split(mixed_tokens=103)
    sizes = (StepSize(4, 103, 300 + 5050, 100, 5050), StepSize(3, 3, 300))
    for n, size in enumerate(sizes):
        observer.step_began(Phase.DECODE, size, split, float(n))
        observer.step_ended(Phase.DECODE, n + 0.5)
    mixed, plain = seen(observer, 9.0).steps
    assert (mixed.batch, mixed.context, mixed.prompts) == (2, 256, 64), "rounded down to powers of two"
    assert (mixed.tokens, mixed.context_tokens) == (103, 5350)
    assert (mixed.prompt_tokens, mixed.prompt_context_tokens) == (100, 5050)
    assert (plain.batch, plain.prompts, plain.prompt_tokens, plain.alone_seconds) == (2, 0, 0, 0.5)


def test_sums_that_no_step_was_added_to_are_told_as_before() -> None:
    observer = Observer("c")
    for k, tokens in enumerate((10, 100)):
        observer.step_began(Phase.PREFILL, StepSize(1, tokens, 0), Split(), float(k))
        observer.step_ended(Phase.PREFILL, k + 0.5)
    before = {s.batch: s for s in seen(observer, 2.0).steps}
    observer.step_began(Phase.PREFILL, StepSize(1, 100, 0), Split(), 2.0)
    assert {s.batch: s for s in seen(observer, 2.2).steps} == before, "a step that runs is none yet"
    observer.step_ended(Phase.PREFILL, 2.5)
    after = {s.batch: s for s in seen(observer, 3.0).steps}
    assert after[8] == before[8]
    assert (before[64].steps, after[64].steps, after[64].tokens) == (1, 2, 200), "what was told before stays as it was"


def test_kinds_are_bounded_and_the_oldest_goes() -> None:
    observer = Observer("c")
    for n in range(KINDS_KEPT + 50):
        observer.step_began(Phase.DECODE, ONE, Split(prefill=1 + n % 100, decode=1 + n // 100), float(n))
        observer.step_ended(Phase.DECODE, n + 0.5)
    steps = seen(observer, 1e4).steps
    assert len(steps) == KINDS_KEPT
    assert (steps[-1].split.prefill, steps[0].split.prefill) == (1 + (KINDS_KEPT + 49) % 100, 51)


@given(
    st.lists(
        st.tuples(st.sampled_from(["begin", "end", "lose", "look"]), st.sampled_from(list(Phase)), st.floats(0, 5))
    )
)
def test_shared_time_is_never_more_than_either_phase_was_busy(events: list[tuple[str, Phase, float]]) -> None:
    observer, now = Observer("c"), 1.0
    for what, phase, passed in events:
        now += passed
        if what == "begin":
            observer.step_began(phase, ONE, Split(), now)
        elif what == "end":
            observer.step_ended(phase, now)
        elif what == "lose":
            observer.step_lost(phase, now)
        o = seen(observer, now)
        assert 0 <= o.shared_seconds <= min(o.busy_seconds.values()) + 1e-9
        assert all(busy <= now - 1.0 + 1e-9 for busy in o.busy_seconds.values())
        assert sum(s.alone_seconds + s.shared_seconds for s in o.steps) <= sum(o.busy_seconds.values()) + 1e-6


def test_requests_are_told_as_they_come_wait_run_and_are_refused() -> None:
    observer = Observer("c")
    first, second = request(1, 9.0), request(2, 9.5, prompt=40)
    observer.arrived(first)
    observer.arrived(second)
    first.state, first.first_token_at, first.last_token_at = RequestState.DECODING, 10.0, 11.0
    first.token_ids += [0, 0, 0]
    observer.rejected(11.5, 7, 11.6)
    o = observer.observation(12.0, 0, [second], [first], Limits(8, 640, 256), preemptions=3, kv_used_tokens=32)
    assert [(a.id, a.prompt_tokens) for a in o.arrivals] == [(1, 10), (2, 40)]
    assert [(q.id, q.uncached_tokens) for q in o.queue] == [(2, 40)]
    (running,) = o.running
    assert (running.output_tokens, running.first_token_at, running.uncomputed_tokens) == (3, 10.0, 0)
    assert [(f.finish_reason, f.received_at, f.prompt_tokens) for f in o.finished] == [("rejected", 11.5, 7)]
    assert (o.max_num_seqs, o.kv_tokens, o.kv_used_tokens, o.preemptions) == (8, 640, 32, 3)
    assert Observation.model_validate_json(o.model_dump_json()) == o, "it goes over the wire unharmed"


def test_a_cursor_asks_for_what_is_new_and_each_core_has_its_own_name() -> None:
    observer = Observer()
    for n in range(5):
        observer.finished(request(n), 10.0 + n)
    assert [f.cursor for f in seen(observer, 20.0, since=3).finished] == [3, 4]
    assert seen(observer, 20.0).next_cursor == 5
    assert seen(observer, 20.0).core_id != seen(Observer(), 20.0).core_id


def test_time_held_back_is_integrated_by_its_cause() -> None:
    observer = Observer("c")
    observer.held_back("slots", 10.0)
    observer.held_back("slots", 11.0)
    observer.held_back("kv", 12.0)
    observer.held_back("", 15.0)
    o = seen(observer, 30.0)
    assert (o.held_back_by_slots_seconds, o.held_back_by_kv_seconds) == (2.0, 3.0)
