"""Runs policies over workloads and seeds, and says what came of it. Prints nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from semipd_agent.contract import SLO, Admission
from semipd_cli.simulator.engine import Done, Size, VirtualEngine
from semipd_cli.simulator.oracle import ORACLES
from semipd_cli.simulator.policies import POLICIES, Constant, Controller, Keeper
from semipd_cli.simulator.workloads import Workload
from semipd_engine.contract import Gate, Split

AFTER = 180.0
"""Seconds after the last arrival; a request that is not over by then has missed."""
MIXED = "mixed/"
CONSTANTS = ((20, 100), (40, 100), (60, 100), (80, 100), *((100, y) for y in (100, 80, 60, 40, 20, 10)))
"""Splits that the best constant is chosen from."""


@dataclass(frozen=True)
class Outcome:
    workload: str
    policy: str
    seed: int
    requests: int
    attainment: float
    """Part of the requests that met both targets; refused and unfinished ones missed."""
    ttft: tuple[float, float]
    tpot: tuple[float, float]
    """50th and 90th percentile, seconds."""
    moves: int
    moves_an_hour: float
    refused: int
    policy_seconds: float
    cpu_seconds: float
    splits: tuple[tuple[float, int, int], ...] = field(default=(), repr=False)
    """(second, prefill, decode) at each change; without isolation prefill is 0, and decode the tokens of a step."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, entry: dict[str, Any]) -> Outcome:
        pairs = {name: tuple(entry[name]) for name in ("ttft", "tpot")}
        return cls(**entry | pairs | {"splits": tuple(map(tuple, entry["splits"]))})


def run(
    workload: Workload,
    policy: str,
    seconds: float,
    seed: int,
    size: Size,
    *,
    warm_up: float = 0.0,
    admission: Admission = Admission.OFF,
) -> Outcome:
    """One policy: of `POLICIES`, ``x/y`` for a constant split, or ``mixed/512`` for one process whose steps hold at
    most so many tokens of prompts. Requests that arrive before `warm_up` do not count.

    Raises:
        ValueError: no such policy.
    """
    slo = SLO.model_construct(
        ttft_milliseconds=workload.ttft_milliseconds,
        tpot_milliseconds=workload.tpot_milliseconds,
        percentile=90,
        window_seconds=60,
    )
    controller, split = controller_of(policy, slo, workload.oracle)
    if policy.startswith(MIXED):
        size = replace(size, prefill_chunk_tokens=split.mixed_tokens)
    arrivals = list(workload.arrivals(seconds, seed))
    engine = VirtualEngine(arrivals, ORACLES[workload.oracle], size, seed, split)
    keeper, gate = Keeper(slo, workload.oracle, admission) if admission is not Admission.OFF else None, Gate()
    splits = [(0.0, *shares(split))]
    cursor, thought, began = 0, 0.0, time.process_time()
    second = 0.0
    while second < seconds + AFTER and not (second >= seconds and engine.drained):
        second += 1.0
        engine.run_until(second)
        if (isinstance(controller, Constant) and keeper is None) or second > seconds:
            continue
        started = time.process_time()
        o = engine.observe(cursor)
        cursor = o.next_cursor
        if (to := controller.tick(o, split)) is not None and to != split:
            split = to
            engine.switch(split)
            splits.append((second, *shares(split)))
        if keeper is not None:
            engine.follow(gate)  # it goes out with the agent's next question
            gate = keeper.tick(o, split, controller)
        thought += time.process_time() - started
    counted = sum(a.at >= warm_up for a in arrivals)
    done = [d for d in engine.done if d.at >= warm_up]
    ttft, tpot = [d.ttft for d in done if d.ttft is not None], [d.tpot for d in done if d.tpot is not None]
    met = sum(meets(d, workload) for d in done)
    moves = len(splits) - 1
    return Outcome(
        workload=workload.name,
        policy=policy,
        seed=seed,
        requests=counted,
        attainment=met / counted if counted else math.nan,
        ttft=(quantile(ttft, 0.5), quantile(ttft, 0.9)),
        tpot=(quantile(tpot, 0.5), quantile(tpot, 0.9)),
        moves=moves,
        moves_an_hour=moves * 3600 / seconds,
        refused=sum(d.ttft is None for d in done),
        policy_seconds=thought,
        cpu_seconds=time.process_time() - began,
        splits=tuple(splits),
    )


def controller_of(policy: str, slo: SLO, oracle: str) -> tuple[Controller, Split]:
    if policy in POLICIES:
        return POLICIES[policy](slo, oracle), Split()
    budget = policy.removeprefix(MIXED)
    if budget != policy and budget.isdigit() and int(budget) >= Size.block_size:
        return Constant(), Split(mixed_tokens=int(budget))
    x, _, y = policy.partition("/")
    if not (x.isdigit() and y.isdigit() and 1 <= int(x) <= 100 and 1 <= int(y) <= 100):
        raise ValueError(
            f"{policy}: no such policy; there are {', '.join(POLICIES)}, best-constant, mixed/512, and constants as "
            "80/100"
        )
    return Constant(), Split(prefill=int(x), decode=int(y))


def shares(split: Split) -> tuple[int, int]:
    return (0, split.mixed_tokens) if split.mixed_tokens else (split.prefill, split.decode)


def best_constant(
    workload: Workload, seconds: float, seeds: Sequence[int], size: Size, step: Callable[[], None]
) -> str:
    """The constant split with the highest mean attainment over `seeds`; in hindsight, where these are judged, too."""
    means = {}
    for x, y in CONSTANTS:
        name = f"{x}/{y}"
        means[name] = sum(run(workload, name, seconds, seed, size).attainment for seed in seeds) / len(seeds)
        step()
    return max(means, key=lambda name: means[name])


def meets(d: Done, workload: Workload) -> bool:
    if d.ttft is None:
        return False
    return d.ttft * 1000 <= workload.ttft_milliseconds and (d.tpot or 0.0) * 1000 <= workload.tpot_milliseconds


def quantile(values: Iterable[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else math.nan


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean of a - b over seeds and the half width of its 95 % band (Student)."""
    d = [x - y for x, y in zip(a, b, strict=True)]
    n, mean = len(d), sum(d) / len(d)
    if n < 2:
        return mean, math.nan
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}.get(n, 2.0)
    return mean, t * math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1) / n)
