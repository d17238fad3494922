"""Who is refused for the service's targets: the arithmetic, and what a client and a scrape see of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.unit.server.api_process import StartApi

from e2e.lib.waiting import wait_until
from semipd_engine.ipc.requests import Gate
from semipd_engine.server.gate import Backlog, Refusal, refusal, seconds_of

pytestmark = pytest.mark.unit
GATE = Gate(ttft_seconds=1.0, token_seconds=1e-3)
"""A prompt of 100 tokens takes 0.1 s."""


def asked(backlog: Backlog, *prompts: int, gate: Gate = GATE, now: float = 0.0, wish: float = 0.0) -> Refusal | None:
    return refusal(gate, backlog, prompts, now, in_work=len(backlog), wish=wish or None)


def waiting(*prompts: int) -> Backlog:
    backlog = Backlog()
    for tokens in prompts:
        backlog.add(tokens, 0.0)
    return backlog


def test_who_would_be_late_is_refused_and_told_when_it_would_not_be() -> None:
    assert asked(waiting(300, 300), 400) is None
    refused = asked(waiting(300, 300), 2500)
    assert refused is not None
    assert (refused.slo, refused.retry_after) == ("ttft", 1), "in 0.6 s nobody waits any more"
    refused = asked(waiting(2000, 2000), 100)
    assert refused is not None and refused.retry_after == 4
    assert refused.message == (
        "the first token is expected in 4.1 s, and the target is 1 s: 2 prompts with about 4000 tokens wait"
    )


def test_a_prompt_that_is_always_late_is_not_kept_out_for_ever() -> None:
    assert asked(Backlog(), 50_000) is None
    assert asked(waiting(250), 50_000) is None, "it waits for a quarter of the target"
    assert asked(waiting(260), 50_000) is not None


def test_who_asks_for_less_haste_may_wait_for_longer() -> None:
    crowd = waiting(2000, 2000)
    assert asked(crowd, 100, wish=5.0) is None
    assert asked(crowd, 100, wish=0.1) is not None, "nobody is refused for a haste of its own"
    assert asked(waiting(300), 400, wish=0.1) is None


def test_of_the_first_prompt_as_much_is_done_as_there_was_time_for() -> None:
    backlog = waiting(1000, 500)
    assert backlog.seconds(GATE, 0.0) == pytest.approx(1.5)
    assert backlog.seconds(GATE, 0.4) == pytest.approx(1.1)
    assert backlog.seconds(GATE, 7.0) == pytest.approx(0.5), "no more of it than there is"
    backlog.done(1, 7.0)
    assert backlog.seconds(GATE, 7.1) == pytest.approx(0.4)


def test_tickets_are_corrected_and_given_back_in_any_order_and_the_sums_with_them() -> None:
    gate = Gate(ttft_seconds=1.0, token_seconds=1e-3, square_seconds=1e-6)
    backlog = waiting(100, 200, 300)
    assert seconds_of(gate, 100) == pytest.approx(0.11)
    assert backlog.seconds(gate, 0.0) == pytest.approx(0.6 + 0.14)
    backlog.correct(2, 50)
    assert backlog.seconds(gate, 0.0) == pytest.approx(0.45 + 0.1025)
    backlog.done(3, 0.05)
    backlog.done(3, 0.05)
    assert backlog.seconds(gate, 0.05) == pytest.approx(0.15 + 0.0125 - 0.05), "the first one's turn goes on"
    for ticket in (1, 2):
        backlog.done(ticket, 1.0)
    backlog.correct(1, 500)
    assert (backlog.seconds(gate, 1.0), len(backlog), backlog.tokens) == (0.0, 0, 0)


def test_what_came_of_it_corrects_what_is_said_of_the_next() -> None:
    """A machine that is twice as slow as the agent thinks: after some first tokens waits are told as they are."""
    backlog, now = Backlog(), 0.0
    for _ in range(200):
        ticket = backlog.add(500, now, GATE)
        now += 1.0
        backlog.done(ticket, now)
    assert backlog.slower == pytest.approx(2.0, rel=0.1)
    backlog.add(300, now, GATE)
    assert backlog.seconds(GATE, now) == pytest.approx(0.6, rel=0.1)
    assert asked(backlog, 300, now=now) is not None and asked(waiting(300), 300) is None
    slower = backlog.slower
    backlog.done(backlog.add(100, now, GATE), now + 90.0, came=False)
    assert backlog.slower == slower, "who leaves proves nothing"
    for _ in range(200):
        ticket = backlog.add(500, now, GATE)
        now += 0.5
        backlog.done(ticket, now)
    backlog.done(backlog.add(100, now, Gate()), now + 90.0)
    assert backlog.slower < 1.6, "and what was is forgotten"


def test_one_stall_shuts_no_gate_for_good() -> None:
    backlog = Backlog()
    backlog.done(backlog.add(100, 0.0, GATE), 3600.0)
    assert backlog.slower < 1.5, "one says little"
    assert asked(backlog, 50_000, now=3600.0) is None, "nobody waits"
    for k in range(200):
        ticket = backlog.add(500, 3600.0 + k, GATE)
        backlog.done(ticket, 3600.5 + k)
    assert backlog.slower < 1.2


def test_a_bound_on_requests_in_work_lets_one_in_always() -> None:
    gate = Gate(most_in_work=3)
    tried = {n: refusal(gate, Backlog(), (10,), 0.0, in_work=n) for n in (0, 2, 3)}
    assert tried[0] is None and tried[2] is None
    assert (refused := tried[3]) is not None and (refused.slo, refused.retry_after) == ("tpot", 5)
    assert refusal(gate, Backlog(), (10,), 0.0, in_work=1, sequences=3) is not None
    assert refusal(gate, Backlog(), (10,), 0.0, in_work=0, sequences=9) is None, "alone it may be more than that"


def test_without_a_word_of_the_agent_nobody_is_refused() -> None:
    crowd = waiting(*[1000] * 100)
    assert refusal(Gate(), crowd, (1000,), 0.0, in_work=1000) is None
    assert refusal(Gate(token_seconds=1.0), crowd, (1000,), 0.0, in_work=1000) is None


def test_the_api_refuses_with_429_names_the_target_and_counts(start_api: StartApi) -> None:
    api = start_api()
    api.core.hold = True
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(api.complete, [5] * 100)
        wait_until(lambda: len(api.core.added) == 1)
        api.core.set_state(gate=Gate(ttft_seconds=0.5, token_seconds=1.0))
        wait_until(lambda: 'semipd_admission_gate{model_name="letters",slo="ttft"} 1.0' in api.metrics())
        refused = api.complete("dog " * 2_000)  # whoever tokenised it would find it too long: 400
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("ttft_target", "rate_limit_error")
        assert "the target is 0.5 s" in error["message"] and "spec.admission" in error["message"]
        body = {"prompt": [5], "max_tokens": 8}
        patient = {"x-slo-ttft-ms": "900000"}
        second = pool.submit(api.client.post, "/v1/completions", json=body, headers=patient)
        wait_until(lambda: len(api.core.added) == 2)
        api.core.set_state(gate=Gate(most_in_work=2))
        wait_until(lambda: 'semipd_admission_gate{model_name="letters",slo="tpot"} 1.0' in api.metrics())
        refused = api.complete([5])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert refused.json()["error"]["code"] == "tpot_target"
        for reason in ("ttft_target", "tpot_target"):
            assert f'semipd_rejected_requests_total{{model_name="letters",reason="{reason}"}} 1.0' in api.metrics()
        wait_until(lambda: len(api.core.rejected) == 2)  # core hears of both, and so does the agent
        api.core.set_state(gate=Gate())
        wait_until(lambda: 'semipd_admission_gate{model_name="letters",slo="tpot"} 0.0' in api.metrics())
        third = pool.submit(api.complete, [5])
        wait_until(lambda: len(api.core.added) == 3)
        api.core.crash()
        assert [one.result().status_code for one in (first, second, third)] == [503] * 3


def test_who_is_answered_or_gone_waits_no_more(start_api: StartApi) -> None:
    """What the gate counts comes back to nothing on each path that a request may end on."""
    api = start_api()
    assert api.complete([5] * 100, max_tokens=3).status_code == 200
    assert api.complete([[5] * 50, [6] * 50], n=2, max_tokens=3).status_code == 200
    assert api.complete([5] * 300, max_tokens=3).status_code == 400
    api.core.error = "a defect"
    assert api.complete([5] * 100, max_tokens=3).status_code == 500
    api.core.error = None
    api.core.set_state(gate=Gate(ttft_seconds=1e-3, token_seconds=1.0, most_in_work=1))
    wait_until(lambda: 'semipd_admission_gate{model_name="letters",slo="tpot"} 1.0' in api.metrics())
    for _ in range(3):
        assert api.complete([5] * 100, max_tokens=3).status_code == 200
