"""Plays one load against several pods and one rule for their number, and says what came of it. Prints nothing."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from semipd_agent.contract import SLO
from semipd_cli.simulator.engine import Arrival, Size
from semipd_cli.simulator.scaling.fleet import Fleet, Router, Start
from semipd_cli.simulator.scaling.hpa import SYNC_SECONDS, Reading, State, sync
from semipd_cli.simulator.scaling.pod import Pod
from semipd_cli.simulator.scaling.scalers import Scaler, readings
from semipd_cli.simulator.study import AFTER, controller_of, meets, quantile
from semipd_cli.simulator.workloads import Workload
from semipd_operator.status.arrivals import Arrivals

MINUTE = 60.0


@dataclass(frozen=True)
class Pipeline:
    """From a pod's series to the autoscaler."""

    period: float = 15.0
    """Seconds from one scrape to the next."""
    lag: float = 5.0
    """From a scrape to its being served."""


@dataclass(frozen=True)
class Scene:
    """All but the rule for the number of pods."""

    workload: Workload
    seconds: float
    size: Size
    policy: str = "auto"
    """In each pod: `auto`, or a split as 80/100."""
    start: Start = field(default_factory=Start)
    router: Router = Router.LEAST_LOADED
    pipeline: Pipeline = Pipeline()


@dataclass(frozen=True)
class Scaled:
    """What one rule made of one load."""

    workload: str
    scaler: str
    seed: int
    requests: int
    attainment: float
    """Part of the requests that met both targets; refused and unfinished ones missed."""
    ttft: tuple[float, float]
    tpot: tuple[float, float]
    """50th and 90th percentile, seconds."""
    replica_seconds: float
    """Until the load ends: from each pod's creation, its start and its last requests included."""
    most: int
    """Pods at a time, as set."""
    changes: int
    """Of the number of pods."""
    moves: int
    """Of splits, of all pods."""
    cpu_seconds: float
    pods: tuple[tuple[float, int, int], ...] = field(default=(), repr=False)
    """(second, as set, ready) at each change."""
    minutes: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    """Of each minute: requests that came, and those of them that met both targets."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, entry: dict[str, Any]) -> Scaled:
        pairs = {name: tuple(entry[name]) for name in ("ttft", "tpot")}
        rows = {name: tuple(map(tuple, entry[name])) for name in ("pods", "minutes")}
        return cls(**entry | pairs | rows)


def play(scene: Scene, scaler: Scaler, seed: int, step: Callable[[float], None] = lambda second: None) -> Scaled:
    """`step`: called with each second that is over. Raises ValueError: no such policy."""
    began, workload = time.process_time(), scene.workload
    arrivals = list(workload.arrivals(scene.seconds, seed))
    coming = deque(arrivals)
    fleet = Fleet(scaler.pods, _birth(scene, seed), scene.start, scene.router)
    state, scraped, came = State(), deque[tuple[float, list[Reading]]](maxlen=8), Arrivals()
    pods = [(0.0, scaler.pods, scaler.pods)]
    second = 0.0
    while second < scene.seconds + AFTER and not (second >= scene.seconds and fleet.drained):
        second += 1.0
        fleet.advance(second, _until(second, coming))
        if second <= scene.seconds and scaler.autoscaler is not None:
            if second % scene.pipeline.period == 0:
                said = {one.number: one.pod.exported() for one in fleet.ready if one.pod}
                came = came.advanced(second, {str(number): (second, one.arrivals) for number, one in said.items()})
                growth = came.growth(second, scene.start.ready, sum(one.rate for one in said.values()))
                scraped.append((second, readings(scaler.autoscaler, said, growth)))
            told = next((one for at, one in reversed(scraped) if at <= second - scene.pipeline.lag), None)
            if second % SYNC_SECONDS == 0 and told is not None:
                to, state = sync(scaler.autoscaler, state, fleet.replicas, fleet.seen, told, second)
                fleet.scale(to)
        if (there := (fleet.replicas, len(fleet.ready))) != pods[-1][1:]:
            pods.append((second, *there))
        step(second)
    return _told(scene, scaler, seed, [a.at for a in arrivals], fleet, tuple(pods), time.process_time() - began)


def _until(second: float, coming: deque[Arrival]) -> Iterator[Arrival]:
    while coming and coming[0].at <= second:
        yield coming.popleft()


def _birth(scene: Scene, seed: int) -> Callable[[int, float], Pod]:
    slo = slo_of(scene.workload)
    split = controller_of(scene.policy, slo, scene.workload.oracle)[1]
    return lambda number, now: Pod(
        slo,
        scene.workload.oracle,
        scene.size,
        split=split,
        now=now,
        seed=1000 * seed + number,
        moves=scene.policy == "auto",
    )


def slo_of(workload: Workload) -> SLO:
    return SLO.model_construct(
        ttft_milliseconds=workload.ttft_milliseconds,
        tpot_milliseconds=workload.tpot_milliseconds,
        percentile=90,
        window_seconds=60,
    )


def _told(
    scene: Scene,
    scaler: Scaler,
    seed: int,
    came: list[float],
    fleet: Fleet,
    pods: tuple[tuple[float, int, int], ...],
    cpu_seconds: float,
) -> Scaled:
    done = list(fleet.done)
    met = [d.at for d in done if meets(d, scene.workload)]
    ttft, tpot = [d.ttft for d in done if d.ttft is not None], [d.tpot for d in done if d.tpot is not None]
    asked, good = (Counter(int(at // MINUTE) for at in times) for times in (came, met))
    return Scaled(
        workload=scene.workload.name,
        scaler=scaler.name,
        seed=seed,
        requests=len(came),
        attainment=len(met) / len(came) if came else math.nan,
        ttft=(quantile(ttft, 0.5), quantile(ttft, 0.9)),
        tpot=(quantile(tpot, 0.5), quantile(tpot, 0.9)),
        replica_seconds=fleet.paid(scene.seconds),
        most=max(count for _, count, _ in pods),
        changes=sum(a[1] != b[1] for a, b in itertools.pairwise(pods)),
        moves=fleet.moves,
        cpu_seconds=cpu_seconds,
        pods=pods,
        minutes=tuple((asked[k], good[k]) for k in range(math.ceil(scene.seconds / MINUTE))),
    )
