"""Many pods under one load, in simulation: the agents' ratios through the HPA's rules give a number of pods that rests.

The rules are those of the HorizontalPodAutoscaler that the operator renders, with a target of 80 %; a new pod takes a
minute to load its model. Requests go to a random ready pod.
"""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

import pytest
from tests.unit.agent_plant import Pod, Speed, poisson

from semipd_agent.contract import SLO, AgentConfig, Mode, PartitionConfig
from semipd_cli.simulator.engine import Arrival
from semipd_cli.simulator.scaling.hpa import PodSeen, State, sync
from semipd_cli.simulator.scaling.pod import Exported
from semipd_cli.simulator.scaling.scalers import readings, scaler

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


def simulate(load: float, seconds: int, seed: int) -> list[int]:
    """Number of pods after each look of the autoscaler, from one pod on."""
    rng = random.Random(seed)
    pods, leaving = [Replica(0.0, 0.0)], list[Replica]()
    jobs = deque(poisson(load * EDGE, seconds, 1155, 211, seed))
    hpa = scaler(f"utilization/{TARGET}", 1, 10).autoscaler
    state, path = State(), [1]
    for now in range(1, seconds + 1):
        ready = [pod for pod in pods if pod.ready_at <= now]
        while jobs and jobs[0].at <= now:
            job = jobs.popleft()
            rng.choice(ready).engine.submit(Arrival(job.at, job.prompt, job.output))
        for pod in pods + leaving:
            pod.tick(float(now))
        if now % SYNC:
            continue
        told = {k: Exported(pod.controller.pilot.utilization_ratio, None, 0) for k, pod in enumerate(ready)}
        seen = [PodSeen(k, ready=pod.ready_at <= now) for k, pod in enumerate(pods)]
        wanted, state = sync(hpa, state, len(pods), seen, readings(hpa, told), float(now))
        pods += [Replica(float(now), float(now + BOOT)) for _ in range(wanted - len(pods))]
        leaving += [pods.pop() for _ in range(len(pods) - wanted)]
        path.append(len(pods))
    return path


@pytest.mark.parametrize(("load", "pods"), [(0.3, {1}), (1.3, {2, 3})])
def test_under_a_constant_load_the_number_of_pods_finds_its_place_and_rests(load: float, pods: set[int]) -> None:
    path = simulate(load, 600, seed=2)
    assert path[-1] in pods
    assert max(path) <= max(pods) + 1, "at most one pod too many on the way"
    settled = path[300 // SYNC :]
    moves = [b - a for a, b in pairwise(settled) if a != b]
    assert len(moves) <= 1, f"five minutes of constant load: {settled}"
