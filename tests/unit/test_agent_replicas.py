"""Many pods under one load, in simulation: the agents' ratios through the HPA's rules give a number of pods that rests.

The rules are those of the HorizontalPodAutoscaler that the operator renders, with a target of 80 %, and the growth that
it expects is counted in; a new pod takes a minute to load its model. Requests go to a random ready pod.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from itertools import chain, pairwise

import pytest
from tests.unit.agent_plant import Job, Pod, Speed, poisson

from semipd_agent.contract import SLO, AgentConfig, Mode, PartitionConfig
from semipd_cli.simulator.engine import Arrival
from semipd_cli.simulator.scaling.hpa import PodSeen, State, sync
from semipd_cli.simulator.scaling.pod import Exported
from semipd_cli.simulator.scaling.scalers import readings, scaler
from semipd_operator.status.arrivals import Arrivals

pytestmark = pytest.mark.unit

SPEED = Speed(prompt_token=1e-4, step=0.012, row=0.0006)
CHAT = SLO(ttft_milliseconds=866, tpot_milliseconds=94)
EDGE = 2.25
"""Requests a second of 1,155 prompt and 211 output tokens with which one pod just meets `CHAT`."""
TARGET, SYNC, BOOT = 0.8, 15, 60


class Replica(Pod):
    def __init__(self, now: float, ready_at: float) -> None:
        super().__init__(AgentConfig(slo=CHAT, partition=PartitionConfig(mode=Mode.AUTO)), speed=SPEED, now=now)
        self.ready_at = ready_at


def simulate(arrivals: Iterable[Job], seconds: int, seed: int) -> list[int]:
    """Number of pods after each look of the autoscaler, from one pod on."""
    rng = random.Random(seed)
    pods, leaving = [Replica(0.0, 0.0)], list[Replica]()
    jobs = deque(arrivals)
    hpa = scaler(f"utilization/{TARGET}", 1, 10).autoscaler
    state, came, path = State(), Arrivals(), [1]
    for now in range(1, seconds + 1):
        ready = [pod for pod in pods if pod.ready_at <= now]
        while jobs and jobs[0].at <= now:
            job = jobs.popleft()
            rng.choice(ready).engine.submit(Arrival(job.at, job.prompt, job.output))
        for pod in pods + leaving:
            pod.tick(float(now))
        if now % SYNC:
            continue
        pilots = [pod.controller.pilot for pod in ready]
        told = {k: Exported(pilot.utilization_ratio, None, 0) for k, pilot in enumerate(pilots)}
        came = came.advanced(float(now), {str(id(pilot)): (float(now), pilot.arrivals) for pilot in pilots})
        growth = came.growth(now, BOOT, sum(pilot.utilization_rate for pilot in pilots))
        seen = [PodSeen(k, ready=pod.ready_at <= now) for k, pod in enumerate(pods)]
        wanted, state = sync(hpa, state, len(pods), seen, readings(hpa, told, growth), float(now))
        pods += [Replica(float(now), float(now + BOOT)) for _ in range(wanted - len(pods))]
        leaving += [pods.pop() for _ in range(len(pods) - wanted)]
        path.append(len(pods))
    return path


@pytest.mark.parametrize(("load", "pods"), [(0.3, {1}), (1.3, {2, 3})])
def test_under_a_constant_load_the_number_of_pods_finds_its_place_and_rests(load: float, pods: set[int]) -> None:
    path = simulate(poisson(load * EDGE, 600, 1155, 211, 2), 600, seed=2)
    assert path[-1] in pods
    assert max(path) <= max(pods) + 1, "at most one pod too many on the way"
    settled = path[300 // SYNC :]
    moves = [b - a for a, b in pairwise(settled) if a != b]
    assert len(moves) <= 1, f"five minutes of constant load: {settled}"


def test_a_shift_that_a_split_serves_adds_no_pod() -> None:
    """From prompts to answers, two and a half times as many: for ten minutes."""
    shift = chain(poisson(0.5 * EDGE, 240, 1155, 211, 1), poisson(2.8, 600, 300, 300, 2, start=240))
    assert set(simulate(shift, 840, seed=1)) == {1}


def test_a_shift_that_no_split_serves_adds_a_pod_within_90_s() -> None:
    shift = chain(poisson(0.4 * EDGE, 240, 1155, 211, 1), poisson(1.7 * EDGE, 90, 1155, 211, 2, start=240))
    path = simulate(shift, 330, seed=1)
    assert set(path[: 240 // SYNC + 1]) == {1} and path[-1] >= 2
