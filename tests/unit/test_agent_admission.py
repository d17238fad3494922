"""The gate that follows the targets: its figures, when it shuts, and what it does to an overload in virtual time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from tests.unit.agent_bench import Bench, config
from tests.unit.agent_plant import Job, Pod, Speed, poisson

from semipd_agent.config import ConfigRefused
from semipd_agent.contract import SLO, Admission, AgentConfig, Mode, PartitionConfig
from semipd_agent.contract import Split as WireSplit
from semipd_agent.slo.admission import MARGIN, PRESSED_SECONDS, Gatekeeper
from semipd_agent.slo.load import Load
from semipd_agent.slo.step_model import ASSUMED, ShareLaw, StepProfile
from semipd_cli.simulator.oracle import CPU
from semipd_engine.contract import Gate, Observation, Phase, RunningRequest, Split

pytestmark = pytest.mark.unit
SLOS = SLO(ttft_milliseconds=1000, tpot_milliseconds=50)
EXACT = StepProfile(prefill=(0.0, 1e-3, 2e-6), decode=(0.010, 0.002, 1e-6), contention=1.0, measured=True)
"""Of a device whose shares are parts of its time."""
LOAD = Load(model=Load.of(replace(EXACT, law=ShareLaw.PACED)).model)
HALVES = Split(prefill=50, decode=50)


def seen(at: float, *, rows: int = 0, shared: float = 0.0, held: float = 0.0, core: str = "c") -> Observation:
    """Both phases have been busy all the time, a part of it `shared`; each row has 1,000 positions."""
    row = RunningRequest(id=1, received_at=0.0, prompt_tokens=900, output_tokens=100, first_token_at=0.5)
    busy = dict.fromkeys(Phase, at)
    return Observation(
        core_id=core,
        at=at,
        running=(row,) * rows,
        busy_seconds=busy,
        shared_seconds=shared * at,
        held_back_by_slots_seconds=held * at,
        prefill_chunk_tokens=256,
    )


def kept(
    ticks: int, mode: Admission = Admission.ON, *, slo: SLO = SLOS, full: bool = True, rows: int = 0, **of: float
) -> Gatekeeper:
    keeper = Gatekeeper()
    for at in range(ticks + 1):
        keeper = keeper.advanced(seen(float(at), rows=rows, **of), LOAD, slo, HALVES, mode, full=full)
    return keeper


def test_what_a_prompt_takes_is_its_work_over_what_prefill_does_beside_decode() -> None:
    alone, beside, half = kept(5).gate, kept(5, shared=1.0).gate, kept(5, shared=0.5).gate
    assert alone == Gate(ttft_seconds=MARGIN, token_seconds=1e-3, square_seconds=1e-6)
    assert (beside.token_seconds, beside.square_seconds) == (pytest.approx(2e-3), pytest.approx(2e-6))
    assert half.token_seconds == pytest.approx(1e-3 / 0.75)
    assert kept(5, held=0.5).gate.token_seconds == pytest.approx(2e-3), "half the time they wait for a place"


def test_the_last_seconds_count_and_none_of_another_core() -> None:
    keeper = kept(30)
    for at in range(31, 45):
        o = seen(float(at)).model_copy(update={"shared_seconds": at - 30.0})
        keeper = keeper.advanced(o, LOAD, SLOS, HALVES, Admission.ON, full=True)
    assert keeper.gate.token_seconds == pytest.approx(2e-3)
    keeper = keeper.advanced(seen(1.0, core="born anew"), LOAD, SLOS, HALVES, Admission.ON, full=True)
    assert len(keeper.seen) == 1


def test_the_tpot_gate_shuts_after_lasting_pressure_and_opens_below_it() -> None:
    """Alone a step takes 10 ms and 3 ms for each row: 13 rows keep 50 ms."""
    assert kept(60, rows=13).gate.most_in_work == 0
    assert kept(int(PRESSED_SECONDS) - 1, rows=14).gate.most_in_work == 0
    keeper = kept(int(PRESSED_SECONDS), rows=14)
    assert keeper.gate.most_in_work == 13
    for at, rows, most in ((20.0, 13, 13), (21.0, 12, 13), (22.0, 11, 0), (23.0, 14, 0)):
        keeper = keeper.advanced(seen(at, rows=rows), LOAD, SLOS, HALVES, Admission.ON, full=True)
        assert keeper.gate.most_in_work == most, at
    assert kept(60, rows=14, slo=SLO(ttft_milliseconds=1000)).gate.most_in_work == 0


def test_auto_refuses_nobody_while_a_split_serves_them_and_off_never_does() -> None:
    for mode, full in ((Admission.AUTO, False), (Admission.OFF, True)):
        gate = kept(20, mode, full=full, rows=20).gate
        assert (gate.ttft_seconds, gate.most_in_work) == (0.0, 0)
    assert kept(20, Admission.AUTO, rows=20).gate == kept(20, Admission.ON, rows=20).gate
    assert kept(20, rows=20, slo=SLO(tpot_milliseconds=50)).gate.ttft_seconds == 0.0


def asking(generation: int, admission: Admission, slo: SLO | None = SLOS) -> AgentConfig:
    return config(generation, mode=Mode.AUTO, slo=slo).model_copy(update={"admission": admission})


def test_the_gate_follows_the_configuration_in_place() -> None:
    bench = Bench(asking(1, Admission.OFF))
    for generation, (mode, target) in enumerate(
        ((Admission.ON, MARGIN), (Admission.OFF, 0.0), (Admission.ON, MARGIN)), start=2
    ):
        bench.controller.configure(asking(generation, mode))
        bench.tick()
        assert bench.controller.pilot.gate.ttft_seconds == target
    bench.controller.configure(config(9))
    bench.tick()
    assert bench.controller.pilot.gate == Gate(), "without targets nobody is too late"


def test_a_keeper_that_fails_leaves_the_gate_open(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(asking(1, Admission.ON))
    bench.tick()
    assert bench.controller.pilot.gate.ttft_seconds > 0

    def defect(*_: object, **__: object) -> Gatekeeper:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Gatekeeper, "advanced", defect)
    bench.tick()
    assert bench.controller.pilot.gate == Gate()
    assert [fault.part for fault in bench.report().faults] == ["admission"]
    monkeypatch.undo()
    bench.tick()
    assert bench.controller.pilot.gate.ttft_seconds > 0


def test_an_operator_that_does_not_know_admission_says_nothing_of_it() -> None:
    """Upgrade and roll-back of the operator: one generation, from one who knows the field and one who does not."""
    for first, second in ((Admission.OFF, Admission.ON), (Admission.ON, Admission.OFF)):
        bench = Bench(asking(3, first))
        bench.controller.configure(asking(3, second))
        bench.tick()
        assert bench.controller.pilot.gate.ttft_seconds > 0
        with pytest.raises(ConfigRefused, match="with another slo"):
            bench.controller.configure(asking(3, second, SLO(ttft_milliseconds=900)))
    with pytest.raises(ConfigRefused, match="with another admission"):
        bench.controller.configure(asking(3, Admission.AUTO))
    bench.controller.configure(asking(4, Admission.OFF))
    assert bench.controller.config.admission is Admission.OFF


def test_an_unknown_word_of_a_newer_operator_counts_as_off_and_off_is_not_said() -> None:
    newer = AgentConfig.model_validate_json('{"generation": 1, "admission": "WhenItRains"}')
    assert newer.admission is Admission.OFF
    assert "admission" not in newer.model_dump_json()
    on = asking(1, Admission.ON)
    assert AgentConfig.model_validate_json(on.model_dump_json(by_alias=True)) == on


# ---- an overload, in virtual time ------------------------------------------------------------------------------------

BURST, SECONDS = (60.0, 120.0), 180
TARGETS = SLO(ttft_milliseconds=1000, tpot_milliseconds=100)


class Served:
    """What became of a minute at `burst` requests a second, with 6 a second before and after it."""

    def __init__(self, burst: float, admission: Admission, mode: Mode) -> None:
        begin, end = BURST
        start = WireSplit(prefill_percent=100, decode_percent=30 if mode is Mode.MANUAL else 100)
        settings = AgentConfig(
            generation=1, slo=TARGETS, partition=PartitionConfig(mode=mode, split=start), admission=admission
        )
        jobs = [
            *poisson(6.0, begin, 1000, 20, 1),
            *poisson(burst, end - begin, 1000, 20, 2, start=begin),
            *poisson(6.0, SECONDS - end, 1000, 20, 3, start=end),
        ]
        speed = Speed(prompt_token=CPU.prefill[1], step=CPU.decode[0], row=CPU.decode[1])
        pod = Pod(settings, jobs, speed)
        for second in range(1, SECONDS + 120):
            if second > SECONDS and pod.engine.drained:
                break
            pod.tick(float(second))
        met = [d.at for d in pod.engine.done if d.ttft is not None and d.ttft <= 1.0 and (d.tpot or 0.0) <= 0.1]
        refused = [d.at for d in pod.engine.done if d.ttft is None]
        came = [job.at for job in jobs]
        assert pod.engine.drained and len(pod.engine.done) == len(came)
        self.goodput = sum(begin <= at < end for at in met) / (end - begin)
        self.refused_before = sum(at < begin for at in refused)
        self.refused = sum(begin <= at < end for at in refused)
        self.afterwards = sum(at > end + 30 for at in met) / sum(at > end + 30 for at in came)


served = cache(Served)
AUTO_AND_OFF = (Admission.AUTO, Admission.OFF)


@pytest.mark.parametrize("mode", [Mode.MANUAL, Mode.AUTO])
def test_at_half_more_than_it_serves_the_gate_keeps_the_goodput(mode: Mode) -> None:
    """Nine tenths of the most that is ever served within both targets; 30 s after the burst all is as before."""
    found = {rate: served(rate, Admission.OFF, mode).goodput for rate in (11.0, 12.0)}
    peak, capacity = max(found.values()), max(rate for rate, goodput in found.items() if goodput >= 0.9 * rate)
    gated, open_ = (served(1.5 * capacity, admission, mode) for admission in (Admission.ON, Admission.OFF))
    assert gated.goodput >= 0.9 * peak and gated.afterwards >= 0.95
    assert open_.goodput < 0.5 * peak and not open_.refused
    assert gated.refused > 50 and gated.refused_before <= 3, "where all are in time hardly anybody of 360 is refused"


def test_auto_waits_until_no_split_helps() -> None:
    gated, late, open_ = (served(18.0, admission, Mode.AUTO) for admission in (Admission.ON, *AUTO_AND_OFF))
    assert late.refused > 0 and gated.goodput > late.goodput > 2 * open_.goodput
    assert late.afterwards >= 0.95


def test_a_load_that_is_served_is_refused_nothing() -> None:
    pod = Pod(
        asking(1, Admission.ON, SLO(ttft_milliseconds=1000, tpot_milliseconds=60)),
        [Job(at=k * 0.4, prompt=600, output=40) for k in range(300)],
        Speed(prompt_token=2e-4, step=0.01, row=0.0005),
    )
    for second in range(1, 200):
        pod.tick(float(second))
    assert len(pod.engine.done) == 300 and all(d.ttft is not None for d in pod.engine.done)
    assert ASSUMED.measured is False, "by what was learned: the profile is a guess"
