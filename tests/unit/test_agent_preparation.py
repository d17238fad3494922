"""What a move to a rung without a worker costs: told by the workers, priced by the policy, and in the recording."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import pytest
from tests.unit.agent_bench import Rungs
from tests.unit.agent_plant import Pod, Speed, poisson, worker

from semipd_agent.contract import SLO, AgentConfig, Bounds, Mode, PartitionConfig
from semipd_agent.partitioner import Grant
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.mps.ladder import LADDER
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_agent.slo.advance import advance
from semipd_agent.slo.future import Constants, Future, Setting
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.load import Load
from semipd_agent.slo.predictive import Decision, Hold, State, decide
from semipd_agent.slo.preparation import ASSUMED_SECONDS, UNREADY_SECONDS, Preparation, Refusals, Unready
from semipd_agent.slo.price import Price
from semipd_agent.slo.recording import replayed
from semipd_agent.slo.step_model import ASSUMED, StepModel
from semipd_engine.contract import (
    Arrival,
    EngineSnapshot,
    EngineState,
    Observation,
    Phase,
    QueuedRequest,
    Split,
    WorkerReport,
    WorkerState,
)

pytestmark = pytest.mark.unit
GRANT = Grant(cpus=(0, 1))


# ---- what workers tell ----------------------------------------------------------------------------------------------


def on_rung(phase: Phase, percent: int, generation: int = 1, *starts: float, **changes: object) -> WorkerReport:
    parts = dict(zip(("launch", "context", "warm_up"), starts, strict=False))
    told = {"percent": percent, "generation": generation, "start_seconds": parts}
    return worker(phase, 1).model_copy(update=told | changes)


SERVING = (
    on_rung(Phase.PREFILL, 60, 3, 0.5, 1.0, 2.0),
    on_rung(Phase.PREFILL, 100, 1, 9.0, 1.0, 2.0, routed=False),
    on_rung(Phase.DECODE, 40, 2, 0.5, 1.5, 4.0),
    on_rung(Phase.DECODE, 100, 1, 8.0, 1.0, 2.0, routed=False),
    on_rung(Phase.DECODE, 20, 3, state=WorkerState.STARTING),
    on_rung(Phase.DECODE, 30, 4, state=WorkerState.DEAD),
    on_rung(Phase.DECODE, 50, 1, 30.0, ending=True),
)


def over_the_socket(*workers: WorkerReport, without: Iterable[str] = ()) -> tuple[WorkerReport, ...]:
    snapshot = EngineSnapshot(monotonic_time=0, state=EngineState.READY, workers=workers)
    line = json.loads(snapshot.model_dump_json())
    for each in line["workers"]:
        for name in without:
            del each[name]
    return EngineSnapshot.model_validate_json(json.dumps(line)).workers


def test_a_split_is_warm_where_both_phases_have_a_ready_worker_of_their_rung() -> None:
    told = Preparation.told(over_the_socket(*SERVING))
    assert told == Preparation((60, 100), (40, 100), 6.0), "the youngest of each phase, and of both the slower one"
    warm = [Split(prefill=x, decode=y) for x in LADDER for y in LADDER if told.takes(Split(prefill=x, decode=y)) == 0]
    assert list(map(str, warm)) == ["60/40", "60/100", "100/40", "100/100"]
    assert told.takes(Split(prefill=60, decode=20)) == 6.0


def test_an_engine_that_does_not_tell_its_starts_is_taken_to_need_the_assumed_time() -> None:
    older = over_the_socket(*SERVING, without=["start_seconds"])
    assert Preparation.told(older) == Preparation((60, 100), (40, 100), ASSUMED_SECONDS)


def test_where_a_live_workers_limit_changes_nothing_is_prepared() -> None:
    assert not CpuPaced(GRANT).prepares and not Unlimited(GRANT, {}).prepares


# ---- what the policy makes of it ------------------------------------------------------------------------------------

SLO_ = SLO(ttft_milliseconds=2000, tpot_milliseconds=200)
READY = State(regime=40.0, intent="gain prefill", confirmed=1)
SLIGHT, UNSURE, URGENT = (40, 0.636), (40, 0.6), (30, 0.3)
"""Prefill's share beside decode's 100, and seconds between two prompts. Another split gains 6, 25 and more points."""


def decided(
    load: tuple[int, float],
    preparation: Preparation | None,
    state: State = READY,
    home: Split | None = None,
    since: float = 40.0,
    queue: tuple[QueuedRequest, ...] = (),
) -> Decision | Hold:
    """A minute in which decode has far more than it needs."""
    prefill, gap = load
    arrivals = tuple(Arrival(id=n, at=100.0 + gap * (n - 60), prompt_tokens=1500) for n in range(60))
    o = Observation(core_id="c", at=100.0, arrivals=arrivals, queue=queue, prefill_chunk_tokens=512, max_num_seqs=64)
    model = StepModel(replace(ASSUMED, prefill=(0.0, 1e-4, 0.0), decode=(0.01, 0.0, 0.0), measured=True))
    known = advance(Load(model=model), o)
    known = replace(known, lengths=((1500, 100),) * 60, regime_since=since, since=since)
    here = Split(prefill=prefill, decode=100)
    setting = Setting(SLO_, here, Bounds(), Grid(LADDER), home, preparation=preparation)
    choice, _ = decide(o, known, state, setting)
    assert isinstance(choice, Decision | Hold)
    return choice


def cold(load: tuple[int, float], seconds: float = 20.0) -> Preparation:
    """But for the split in force."""
    return Preparation((load[0],), (100,), seconds)


def test_a_gain_that_is_worth_a_warm_move_may_not_be_worth_a_preparation() -> None:
    without, warm = decided(SLIGHT, None), decided(SLIGHT, Preparation(LADDER, LADDER, 20.0))
    assert isinstance(without, Decision) and warm == without, "all is warm: nothing is another"
    soon, late = (decided(SLIGHT, cold(SLIGHT, seconds)) for seconds in (10.0, 90.0))
    assert isinstance(soon, Decision) and soon.to == without.to
    assert isinstance(late, Hold) and late.reason == "TooLittleGain"


def test_a_gain_that_comes_late_is_as_sure_as_one_at_once() -> None:
    """Less is left of it, and of its error: to ask for all of the error would be a second price."""
    moved = decided(UNSURE, cold(UNSURE, 90.0))
    assert isinstance(moved, Decision) and moved.reason == "Gain"


def test_what_a_split_stays_behind_counts_as_late_as_the_rest() -> None:
    """The gain would have been enough without it: no regret."""
    behind = replace(READY, bias={"40/100": (-0.1, 100.0)})
    moved = decided(UNSURE, cold(UNSURE, 90.0), behind)
    assert isinstance(moved, Decision) and (moved.reason, moved.behind) == ("Gain", 0.1)


def test_a_preparation_is_paid_once_by_a_load_that_lasts() -> None:
    """It is worth to an hour what it is not to a minute; but a long queue is of this minute, whatever the load."""
    short = decided(SLIGHT, cold(SLIGHT, 120.0))
    assert isinstance(short, Hold) and short.reason == "TooLittleGain"
    long = decided(SLIGHT, cold(SLIGHT, 120.0), since=-3500.0)
    assert isinstance(long, Decision) and long.reason == "Gain"
    setting = Setting(SLO_, Split(), Bounds())
    spread = dict[int, float]()
    for waiting in (7, 8):
        o = Observation(core_id="c", at=1000.0)
        spread[waiting] = Price.of(Future(o, Load(since=100.0, regime_since=400.0), setting, (), waiting, (), ())).lasts
    assert spread == {7: 600.0, 8: 60.0}


@pytest.mark.parametrize(("waiting", "reason"), [(8, "Gain"), (200, "Emergency")])
def test_a_queue_that_is_over_before_the_worker_is_ready_is_no_emergency(waiting: int, reason: str) -> None:
    """Eight prompts are served in 4 s as things are, two hundred in 99 s, and the worker needs 60 s."""
    load = (50, 1.0)
    queue = tuple(
        QueuedRequest(id=100 + n, received_at=99.0 + n / waiting, uncached_tokens=1500) for n in range(waiting)
    )
    warm = decided(load, None, queue=queue)
    assert isinstance(warm, Decision) and warm.reason == "Emergency"
    late = decided(load, cold(load, 60.0), queue=queue)
    assert late.reason == reason


def test_an_emergency_moves_to_a_cold_rung_too() -> None:
    """And does not wait for the longer time to the last move, which others do."""
    just_moved = replace(READY, moved_at=92.0)
    for state in (READY, just_moved):
        moved = decided(URGENT, cold(URGENT), state)
        assert isinstance(moved, Decision) and moved.reason == "Emergency"
        assert cold(URGENT).takes(moved.to) > 0


def test_a_warm_rung_is_preferred_to_one_that_is_a_little_better() -> None:
    best = decided(URGENT, None)
    assert isinstance(best, Decision)
    near = Split(prefill=100, decode=20)
    assert best.to != near
    moved = decided(URGENT, Preparation((URGENT[0], 100), (20, 100), 20.0))
    assert isinstance(moved, Decision) and moved.to == near


@pytest.mark.parametrize(("moved_at", "reason"), [(92.0, "Dwell"), (84.0, "Headroom")])
def test_the_configured_split_comes_back_at_leisure(moved_at: float, reason: str) -> None:
    """Its rungs are cold, and what it costs to prepare them once is no reason to stay away for good. 8 s after a move
    it is not prepared yet, where a warm one would be in force."""
    home, calm = Split(prefill=80, decode=60), (100, 3.0)
    ready = State(regime=-100.0, intent="give back prefill", confirmed=1, moved_at=moved_at)
    found = decided(calm, cold(calm), ready, home, since=-100.0)
    assert found.reason == reason
    warm = decided(calm, Preparation(LADDER, LADDER), ready, home, since=-100.0)
    assert isinstance(warm, Decision) and (warm.reason, warm.to) == ("Headroom", home)


def test_a_configured_split_that_could_not_be_prepared_does_not_come_back_by_itself() -> None:
    home, calm = Split(prefill=80, decode=60), (100, 3.0)
    ready = State(regime=-100.0, intent="give back prefill", confirmed=1, moved_at=-100.0)
    for unready, back in ((Unready(80, None), False), (Unready(None, 80), True)):
        found = decided(calm, replace(cold(calm), unready=(unready,)), ready, home, since=-100.0)
        assert (isinstance(found, Decision) and found.to == home) == back


@pytest.mark.parametrize("lasts", [60.0, 600.0])
@pytest.mark.parametrize("seconds", [1.0, 60.0, 600.0])
def test_the_price_is_the_gain_of_those_who_come_meanwhile_and_what_a_start_disturbs(
    seconds: float, lasts: float
) -> None:
    to, c = Split(prefill=20, decode=100), Constants()
    setting = Setting(SLO_, Split(), Bounds(), preparation=Preparation((100,), (100,), seconds))
    price = Price(setting, lasts)
    worth = price.worth(to, 0.9, 0.5)
    assert worth == pytest.approx(0.5 + 0.4 * lasts / (lasts + seconds) - c.cold_cost * 60 / lasts)
    assert worth > 0.5 and price.worth(Split(), 0.9, 0.5) == 0.9
    assert price.left(Split()) == 1 > price.left(to)


# ---- in the loop, and offline once more -----------------------------------------------------------------------------


class OnRungs(Pod):
    def workers(self, epoch: int) -> tuple[WorkerReport, ...]:
        """Of each phase the one in force and the one with the whole device, whose start took a minute."""
        split = self.engine.split
        return tuple(
            on_rung(phase, percent, 1, 10.0, 50.0, applied_epoch=epoch, routed=percent == split.of(phase))
            for phase in Phase
            for percent in sorted({split.of(phase), 100})
        )


Played = TypeVar("Played", bound=OnRungs)


def played(kind: type[Played], seconds: int) -> Played:
    config = AgentConfig(
        slo=SLO(ttft_milliseconds=750, tpot_milliseconds=30), partition=PartitionConfig(mode=Mode.AUTO)
    )
    fast, jobs = Speed(prompt_token=5e-5, step=0.006, row=0.0003), list(poisson(3.25, seconds, 2000, 60, 1))
    pod = kind(config, jobs, fast, backend=Rungs(GRANT))
    for second in range(1, seconds + 1):
        pod.tick(float(second))
    return pod


def test_what_the_policy_knew_of_rungs_is_in_the_recording() -> None:
    """It moves, and later than one that is told nothing would have; decided again it comes to the same."""
    pod = played(OnRungs, 60)
    assert pod.controller.faults.report() == () and pod.controller.changes > 0
    lines = b"".join(pod.controller.pilot.recorder.pieces()).decode().splitlines()
    entries = [json.loads(line) for line in lines]
    told = [entry["tick"]["preparation"] for entry in entries if "tick" in entry]
    assert told[0] == {"prefill": [100], "decode": [100], "seconds": 60.0, "unready": []} and told[-1] != told[0]
    assert all(tick.same for tick in replayed(lines))
    for entry in entries:
        entry.get("tick", {}).pop("preparation", None)
    first = {}
    for name, of in (("told", lines), ("not told", [json.dumps(entry) for entry in entries])):
        moves = [tick.observation.at for tick in replayed(of) if tick.now and tick.now.move]
        first[name] = moves[0]
    assert first["told"] > first["not told"]


class Cramped(OnRungs):
    """There is no memory for one more context."""

    def lacks(self, split: Split) -> bool:
        return any(split.of(phase) not in (self.engine.split.of(phase), 100) for phase in Phase)


def test_what_was_refused_is_no_choice_for_a_while_and_a_recording_knows_it() -> None:
    """Each try is a worker that starts beside those that serve: a rung that could not be had is asked for once."""
    pod = played(Cramped, 150)
    assert pod.controller.faults.report() == () and pod.engine.split == Split()
    assert len(pod.refusals) == len(set(pod.refusals)) > 1, "it looks for another one, and for none twice"
    rolled_back = [d for d in pod.controller.log.newest_first() if d.reason == "Rollback"]
    assert rolled_back[0].message.endswith("no memory; Auto does not choose it again within 10 min")
    entries = [json.loads(line) for line in b"".join(pod.controller.pilot.recorder.pieces()).splitlines()]
    assert all(tick.same for tick in replayed(map(json.dumps, entries)))
    for entry in entries:
        entry.get("tick", {}).get("preparation", {}).pop("unready", None)
    assert not all(tick.same for tick in replayed(map(json.dumps, entries)))


def test_a_refusal_speaks_of_the_rungs_without_a_worker_and_is_forgotten() -> None:
    serving, refusals = Preparation((80, 100), (100,)), Refusals()
    assert serving.cold(Split(prefill=50, decode=100)) == Unready(50, None)
    assert serving.cold(Split(prefill=50, decode=60)) == Unready(50, 60), "nobody knows which of the two it was"
    assert serving.cold(Split(prefill=80, decode=100)) == Unready(80, 100)
    refusals.note(Unready(50, None), 0.0)
    refusals.note(Unready(50, 60), 1.0)
    told = replace(serving, unready=refusals.of_late(UNREADY_SECONDS - 1))
    assert not told.may(Split(prefill=50, decode=30)) and told.may(Split(prefill=60, decode=60))
    told = replace(serving, unready=refusals.of_late(UNREADY_SECONDS))
    assert told.may(Split(prefill=50, decode=30)) and not told.may(Split(prefill=50, decode=60))
    refusals.disproved(Split(prefill=50, decode=60))
    assert refusals.of_late(UNREADY_SECONDS) == (), "it is in force after all"


def test_a_recording_on_a_cpu_is_as_before() -> None:
    pod = Pod(AgentConfig(slo=SLO_, partition=PartitionConfig(mode=Mode.AUTO)), poisson(3, 3, 100, 10, 1))
    for second in range(1, 4):
        pod.tick(float(second))
    assert b"preparation" not in b"".join(pod.controller.pilot.recorder.pieces())
