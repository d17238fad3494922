"""Several simulated pods: the ramp, the router, a pod's life, what is paid for, the rules, the command."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.replicas import plan
from bench.replicas.__main__ import TRACES, verdict
from bench.study.report import as_markdown
from semipd_agent.contract import SLO
from semipd_cli.simulator.command import simulate
from semipd_cli.simulator.engine import Arrival, Size
from semipd_cli.simulator.scaling.fleet import Fleet, Router, Start, victims
from semipd_cli.simulator.scaling.hpa import Form, Rate, Rules
from semipd_cli.simulator.scaling.pod import Exported, Pod
from semipd_cli.simulator.scaling.ramp import Ramp
from semipd_cli.simulator.scaling.report import peak_pool, table
from semipd_cli.simulator.scaling.run import Scaled, Scene, play
from semipd_cli.simulator.scaling.scalers import readings, scaler
from semipd_cli.simulator.workloads import Lengths, Workload, steady, stream
from semipd_operator.status.arrivals import Arrivals

pytestmark = pytest.mark.unit
DOCS = Path(__file__).resolve().parents[2] / "docs"

TARGETS = SLO.model_construct(ttft_milliseconds=1000, tpot_milliseconds=40, percentile=90, window_seconds=60)
SHORT = Lengths(400, 20)


def birth(number: int, now: float) -> Pod:
    return Pod(TARGETS, "cpu", Size(), now=now, seed=number, moves=False)


def fleet(count: int, router: Router = Router.LEAST_LOADED) -> Fleet:
    return Fleet(count, birth, Start(5.0, 20.0), router)


def run(pods: Fleet, arrivals: Sequence[Arrival], seconds: int, start: int = 0) -> None:
    for second in range(start + 1, seconds + 1):
        pods.advance(float(second), [a for a in arrivals if second - 1 < a.at <= second])


# ---- the load --------------------------------------------------------------------------------------------------------

points = st.lists(st.tuples(st.floats(0.5, 500), st.floats(0.1, 8)), max_size=5).map(
    lambda steps: Ramp(
        tuple(zip(itertools.accumulate([0.0, *(s for s, _ in steps)]), [1.0, *(f for _, f in steps)], strict=True))
    )
)


@given(points, st.floats(0, 3000), st.floats(0.01, 100))
def test_a_ramp_bends_time_and_back_in_order(ramp: Ramp, second: float, more: float) -> None:
    assert ramp.when(ramp.load(second)) == pytest.approx(second, rel=1e-6, abs=1e-6)
    assert ramp.load(second + more) > ramp.load(second)
    least, most = (pick(f for _, f in ramp.points) for pick in (min, max))
    assert least * more * 0.999 <= ramp.load(second + more) - ramp.load(second) <= most * more * 1.001


def test_a_poisson_stream_follows_the_ramp() -> None:
    ramp = Ramp.parse("0:1,200:1,400:3")
    bent = ramp.over(Workload("w", 1000, 40, steady(5.0, SHORT)))
    came = [a.at for a in bent.arrivals(600, 3)]
    counts = [sum(first <= at < first + 200 for at in came) for first in (0, 200, 400)]
    assert counts == [pytest.approx(n, rel=0.1) for n in (1000, 2000, 3000)]
    assert max(came) < 600 and came == sorted(came)


@pytest.mark.parametrize("text", ["", "1:1", "0:1,0:2", "0:0", "0:1,x:2", "0:1,5", "0:1,10:inf"])
def test_what_is_no_ramp_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write it as|must be above 0"):
        Ramp.parse(text)


# ---- pods ------------------------------------------------------------------------------------------------------------


def test_every_request_is_answered_once_whatever_comes_and_goes() -> None:
    pods, arrivals = fleet(2), list(stream(8.0, 100, SHORT, 5))
    run(pods, arrivals, 30)
    pods.scale(4)
    run(pods, arrivals, 60, 30)
    pods.scale(1)
    run(pods, arrivals, 200, 60)
    assert pods.drained
    assert sorted(d.at for d in pods.done) == [a.at for a in arrivals]
    assert all(d.ttft is not None for d in pods.done)


def test_a_pod_serves_once_its_model_is_loaded_and_no_more_once_it_is_deleted() -> None:
    pods, arrivals = fleet(1), list(stream(8.0, 100, SHORT, 6))
    run(pods, arrivals, 10)
    pods.scale(2)
    assert [(one.pending, one.ready) for one in pods.seen] == [(False, True), (True, False)]
    run(pods, arrivals, 16, 10)
    assert [(one.pending, one.ready) for one in pods.seen] == [(False, True), (False, False)]
    run(pods, arrivals, 60, 16)
    young = pods.ready[1]
    assert young.ready_at == 30.0
    pods.scale(1)
    run(pods, arrivals, 150, 60)
    assert young.pod is not None
    served = [d.at for d in young.pod.engine.done]
    assert served and min(served) >= 30.0 and max(served) <= 60.0
    assert young.gone_at is not None and 60.0 < young.gone_at < 150.0


def test_what_is_paid_for_is_a_pods_whole_life() -> None:
    pods = fleet(2)
    run(pods, [], 10)
    pods.scale(3)
    run(pods, [], 20, 10)
    assert pods.paid(20.0) == 2 * 20 + 10
    pods.scale(2)
    run(pods, [], 40, 20)
    assert pods.paid(40.0) == 2 * 40 + 10, "the one that still loaded its model went at once"


def test_who_is_not_ready_goes_first_and_then_the_youngest() -> None:
    pods = fleet(2)
    run(pods, [], 10)
    pods.scale(3)
    run(pods, [], 40, 10)
    pods.scale(4)
    assert [one.number for one in victims(pods.pods, 3)] == [3, 2, 1]
    assert victims(pods.pods, 0) == []


def test_the_router_gives_to_the_least_loaded_or_in_turns() -> None:
    """A long prompt on the first pod; what comes meanwhile."""
    long = [Arrival(0.5, 30_000, 5), *(Arrival(0.6 + k / 10, 10, 2) for k in range(4))]
    for router, expected in ((Router.LEAST_LOADED, [1, 4]), (Router.ROUND_ROBIN, [3, 2])):
        pods = fleet(2, router)
        run(pods, long, 20)
        counts = [len(one.pod.engine.done) for one in pods.ready]
        assert sorted(counts) == sorted(expected)


def test_without_a_ready_pod_nobody_can_be_served() -> None:
    with pytest.raises(ValueError, match="no pod is ready"):
        fleet(0).advance(1.0, [Arrival(0.5, 10, 1)])


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_ours_is_the_manifest_that_the_operator_renders() -> None:
    ours = scaler("utilization/0.7", 2, 9).autoscaler
    assert ours is not None
    (metric,) = ours.metrics
    assert (metric.name, metric.form, metric.target) == ("semipd_utilization_ratio", Form.PER_POD, 700)
    assert (ours.least, ours.most) == (2, 9)
    assert ours.up == Rules(15, (Rate(100, True, 60),)) and ours.down == Rules(300, (Rate(1, False, 60),))


@pytest.mark.parametrize("rival", ["latency", "queue/5"])
def test_a_rival_differs_in_its_metric_alone(rival: str) -> None:
    ours, theirs = scaler("utilization", 1, 5).autoscaler, scaler(rival, 1, 5).autoscaler
    assert (ours.up, ours.down, ours.least, ours.most) == (theirs.up, theirs.down, theirs.least, theirs.most)
    assert theirs.metrics[0].form is Form.PODS


def test_the_metrics_are_those_of_the_pods() -> None:
    told = {0: Exported(0.6, 1.3, 4), 1: Exported(0.5, None, 0), 2: Exported(None, None, 2)}
    assert readings(scaler("utilization/0.8", 1, 5).autoscaler, told) == [1900], "who does not tell: full to the target"
    assert readings(scaler("latency", 1, 5).autoscaler, told) == [{0: 1300}]
    assert readings(scaler("queue", 1, 5).autoscaler, told) == [{0: 4000, 1: 0, 2: 2000}]
    assert readings(scaler("utilization", 1, 5).autoscaler, {0: Exported(None, None, 0)}) == [None]
    assert readings(scaler("utilization/0.8", 1, 5).autoscaler, told, 1.5) == [2400], "who does not tell: as empty"
    assert readings(scaler("latency", 1, 5).autoscaler, told, 1.5) == [{0: 1300}], "a rival's metric is as it is"


@pytest.mark.parametrize("text", ["0", "cpu", "queue/x", "queue/0", "latency/inf", "utilization/1.5", "-3"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        scaler(text, 1, 5)


# ---- a run -----------------------------------------------------------------------------------------------------------

RISING = Ramp.parse("0:0.3,40:0.3,60:1").over(Workload("rising", 1000, 40, steady(8.0, Lengths(2000, 20))))
SCENE = Scene(RISING, 300.0, Size(), policy="100/60", start=Start(5.0, 30.0))


def test_pods_follow_a_load_that_one_cannot_serve() -> None:
    one, scaled = (play(SCENE, scaler(rule, 1, 4), 1) for rule in ("1", "utilization/0.8"))
    assert one.attainment < 0.7 and scaled.attainment > one.attainment + 0.15
    assert scaled.most >= 2 and one.changes == 0 and scaled.changes >= 1
    assert one.replica_seconds == 300.0
    assert 300.0 < scaled.replica_seconds < scaled.most * 300.0
    assert sum(came for came, _ in scaled.minutes) == scaled.requests == one.requests
    assert sum(met for _, met in scaled.minutes) == round(scaled.attainment * scaled.requests)


def test_the_growth_is_the_operators_of_what_the_pods_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a constant load that one pod serves: what is expected to be three times as much takes two."""
    workload = Workload("still", 1000, 40, steady(2.0, Lengths(2000, 20)))
    scene, asked, expected = Scene(workload, 120.0, Size(), policy="100/60"), list[tuple[float, float, float]](), 1.0
    came = [arrival.at for arrival in workload.arrivals(scene.seconds, 1)]

    def growth(arrivals: Arrivals, now: float, ahead: float, told: float) -> float:
        assert told == pytest.approx(sum(now - 120 < at <= now for at in came) / min(now, 120), abs=0.6)
        asked.append((now, ahead, sum(arrivals.counts.values())))
        return expected

    monkeypatch.setattr(Arrivals, "growth", growth)
    assert play(scene, scaler("utilization/0.8", 1, 4), 1).most == 1
    assert asked == [
        (now, 120.0, pytest.approx(sum(15 < at <= now for at in came))) for now in map(float, range(15, 121, 15))
    ], "from the first look on, which is where counting begins"
    expected = 3.0
    assert play(scene, scaler("utilization/0.8", 1, 4), 1).most == 2


def test_equal_seeds_give_equal_runs_and_a_run_survives_its_file() -> None:
    first, second = (play(SCENE, scaler("queue/1", 1, 4), 2) for _ in range(2))
    assert (first.pods, first.minutes, first.ttft) == (second.pods, second.minutes, second.ttft)
    assert Scaled.of_json(json.loads(json.dumps(first.as_json()))) == first


def test_the_command_compares_rules_and_writes_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "runs.json", tmp_path / "plot.png"
    arguments = ["300/400@4", "--seconds", "40", "--seeds", "1", "--pods", "2", "--autoscale", "utilization", "--quiet"]
    arguments += ["--ramp", "0:1,20:2", "--start-seconds", "5", "--json", str(out), "--plot", str(picture)]
    assert simulate(arguments) == 0
    assert [r["scaler"] for r in json.loads(out.read_text())] == ["2 pods", "utilization/0.8"]
    assert picture.stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "300/400@4 x ramp" in said and "utilization/0.8" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--autoscale", "cpu"], "cpu: no such metric; there are utilization, latency, queue"),
        (["--pods", "0"], "--pods 0: it must be at least 1"),
        (["--autoscale", "queue", "--min-pods", "3", "--max-pods", "2"], "--min-pods 3, --max-pods 2"),
        (["--pods", "2", "--policy", "auto", "--policy", "100/100"], "take one --policy"),
        (["--pods", "2", "--policy", "mixed/512"], "--policy mixed/512: in several pods"),
        (["--pods", "2", "--admission", "On"], "no --admission"),
        (["--pods", "2", "--start-seconds", "-1"], "--start-seconds -1"),
        (["--ramp", "5:1"], "5:1: write it as"),
    ],
)
def test_wrong_inputs_get_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(["chat", *arguments, "--seconds", "1", "--seeds", "1", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


# ---- the study -------------------------------------------------------------------------------------------------------


def test_the_study_plays_the_whole_trace_once_and_the_ramp_is_in_it() -> None:
    scene = plan.scene(TRACES)
    came = [a.at for a in scene.workload.arrivals(scene.seconds, plan.SEEDS[0])]
    assert len(came) == 19_366
    assert came == sorted(came) and 3590 < came[-1] < 3600
    rates = [sum(first <= at < first + 600 for at in came) / 600 for first in (0, 1500, 3000)]
    assert rates[1] > 4 * rates[0] and rates[1] > 4 * rates[2]
    assert plan.OURS in [rule.name for rule in plan.rules()]


def test_the_page_has_the_figures_of_its_file() -> None:
    told = json.loads((DOCS / "benchmarks/replicas.json").read_text())
    assert tuple(map(tuple, told["ramp"])) == plan.RAMP.points
    outcomes = [Scaled.of_json(o) for o in (*told["runs"], *told["before"]["runs"])]
    assert {o.scaler.removesuffix(" before") for o in outcomes} <= {rule.name for rule in plan.rules()}
    assert as_markdown(table(outcomes, plan.ENOUGH)) in (DOCS / "autoscaling.md").read_text()


def outcome(name: str, attainment: float, paid: float) -> Scaled:
    return Scaled("w", name, 1, 100, attainment, (1, 1), (1, 1), paid, 4, 0, 0, 1.0)


@pytest.mark.parametrize(
    ("attainment", "paid", "held"), [(0.96, 7000.0, True), (0.95, 7000.0, False), (0.99, 8000.0, False)]
)
def test_ours_is_held_against_the_smallest_pool_that_attains_as_much(
    attainment: float, paid: float, held: bool
) -> None:
    pools = [outcome("3 pods", 0.9, 7500.0), outcome("4 pods", 0.97, 10_000.0), outcome("10 pods", 1.0, 25_000.0)]
    assert peak_pool(pools, plan.ENOUGH) == "4 pods"
    assert verdict([*pools, outcome(plan.OURS, attainment, paid)])[0] is held
    assert not verdict([pools[0], outcome(plan.OURS, 0.99, 10.0)])[0], "nothing to hold it against"
