"""Who moves the split in a simulation: the production policies, and baselines that nothing else needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from semipd_agent.contract import SLO, Admission, Bounds
from semipd_agent.slo.admission import Gatekeeper
from semipd_agent.slo.advance import advance
from semipd_agent.slo.algorithm1 import Algorithm1
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.latency_models import TPOT_PRIOR, TTFT_PRIOR, LatencyModel
from semipd_agent.slo.load import Load
from semipd_agent.slo.policy import decode_share, prefill_share
from semipd_agent.slo.predictive import ModelPredictive
from semipd_agent.slo.share_law import Curve
from semipd_agent.slo.step_model import ASSUMED, ShareLaw, StepProfile
from semipd_agent.slo.utilization import Utilization
from semipd_agent.slo.window import Evidence, RequestWindow, percentile
from semipd_engine.contract import Gate, Observation, Phase, Split

RUNGS = (10, 20, 30, 40, 50, 60, 80, 100)


def grid_of(oracle: str) -> Grid:
    """The shares that the device of this oracle has."""
    return Grid() if oracle.endswith("cpu") else Grid(RUNGS)


class Controller(Protocol):
    def tick(self, o: Observation, split: Split) -> Split | None:
        """Once a second; a split to change to."""


class Constant:
    def tick(self, o: Observation, split: Split) -> Split | None:
        return None


def assumed(oracle: str) -> StepProfile:
    """What a pod without a profile believes: the assumed shape with the law of the device."""
    return replace(ASSUMED, law=ShareLaw.PACED if oracle.endswith("cpu") else ShareLaw.SPATIAL)


def measured(oracle: str) -> StepProfile:
    """What a pod believes whose profile was measured elsewhere: each of its figures is 10 to 15 % off."""
    return MEASURED[oracle]


MEASURED = {
    "cpu": StepProfile((1.75e-3, 5.6e-5, 0.0), (6.8e-3, 2.65e-4, 0.0), measured=True),
    "other-cpu": StepProfile((4.4e-3, 7.9e-5, 8.8e-10), (10.2e-3, 1.75e-4, 3.4e-8), measured=True),
    "gpu": StepProfile(
        (4.5e-3, 3.5e-5, 7.4e-10),
        (5.3e-3, 1.35e-5, 5e-8),
        law=ShareLaw.SPATIAL,
        prefill_curve=Curve(0.3, 0.7),
        decode_curve=Curve(0.83, 0.17),
        measured=True,
        curves_measured=True,
    ),
    "other-gpu": StepProfile(
        (14.7e-3, 1.14e-4, 2.25e-9),
        (18.3e-3, 6.8e-5, 1.32e-7),
        law=ShareLaw.SPATIAL,
        prefill_curve=Curve(0.21, 0.79),
        decode_curve=Curve(0.81, 0.19),
        measured=True,
        curves_measured=True,
    ),
}
"""By the name of the oracle that the policy runs on, and never from its figures: of contention, jitter and gaps they
know nothing. A test holds every figure to 10 to 15 %."""


class Auto:
    """A production policy with the agent's own window and load."""

    def __init__(
        self, slo: SLO, oracle: str, *, algorithm1: bool = False, mixes: bool = False, profiled: bool = True
    ) -> None:
        self._window = RequestWindow(120.0)
        self._load = Load.of(measured(oracle) if profiled else assumed(oracle))
        grid, home = grid_of(oracle), Split()
        self.feasible: bool | None = None
        self.late = math.inf
        """As `Evidence.late`: the gate's last word."""
        self.policy = (
            Algorithm1(slo, home, grid=grid) if algorithm1 else ModelPredictive(slo, grid, home=home, mixes=mixes)
        )

    def tick(self, o: Observation, split: Split) -> Split | None:
        self._window.add(o)
        self._load = advance(self._load, o)
        evidence = Evidence.of(o, self._window.requests(o.at), self._load, self.late)
        verdict = self.policy.observe(evidence, split, Bounds(), o.at)
        self.feasible = verdict.feasible
        return verdict.move.to if verdict.move is not None else None


class Keeper:
    """The production gate, beside whatever moves the split."""

    def __init__(self, slo: SLO, oracle: str, mode: Admission) -> None:
        self._slo, self._mode = slo, mode
        self._load = Load.of(measured(oracle))
        self._keeper, self._utilization = Gatekeeper(), Utilization()

    def tick(self, o: Observation, split: Split, controller: Controller) -> Gate:
        self._load = advance(self._load, o)
        if isinstance(controller, Auto):
            full = controller.feasible is False
            controller.late = self._keeper.gate.ttft_seconds or math.inf
        else:
            self._utilization = self._utilization.advanced(o, self._load, self._slo, [split])
            full = (self._utilization.ratio or 0.0) > 1
        self._keeper = self._keeper.advanced(o, self._load, self._slo, split, self._mode, full=full)
        return self._keeper.gate


class Printed:
    """Algorithm 1 as the paper prints it (arXiv 2504.19867), a step counted and x' set before it is read.

    Every window: percentiles, refit, and where one target alone fails that phase's share grows until its own estimate
    passes or the step limit is reached. No guard for the other target, no hysteresis, nothing given back.
    """

    def __init__(self, slo: SLO, window: float = 5.0, step: int = 5, most: int = 4) -> None:
        self._slo, self._seconds, self._step, self._most = slo, window, step, most
        self._window = RequestWindow(window)
        self._due = window
        self._ttft, self._tpot = LatencyModel(TTFT_PRIOR), LatencyModel(TPOT_PRIOR)

    def tick(self, o: Observation, split: Split) -> Split | None:
        self._window.add(o)
        if o.at < self._due:
            return None
        self._due = o.at + self._seconds
        done = self._window.requests(o.at)
        ttft = [r.ttft_seconds for r in done if r.ttft_seconds is not None]
        tpot = [r.tpot_seconds for r in done if r.tpot_seconds is not None]
        if not ttft or not tpot:
            return None
        p = self._slo.percentile
        seen = (percentile(ttft, p), percentile(tpot, p))
        targets = ((self._slo.ttft_milliseconds or 1e9) / 1e3, (self._slo.tpot_milliseconds or 1e9) / 1e3)
        self._ttft.add(prefill_share(split), max(seen[0], 1e-6))
        self._tpot.add(decode_share(split), max(seen[1], 1e-6))
        late, slow = seen[0] > targets[0], seen[1] > targets[1]
        if late == slow:
            return None
        x, y = (split.prefill, split.decode) if late else (split.decode, split.prefill)
        for _ in range(self._most):
            x, y = (x + self._step, y) if x + self._step <= 100 else (100, max(5, y - self._step))
            to = Split(prefill=x, decode=y) if late else Split(prefill=y, decode=x)
            model, share = (self._ttft, prefill_share) if late else (self._tpot, decode_share)
            if model.estimate(share(to), current=share(split), observed=seen[not late]) <= targets[not late]:
                break
        return to if to != split else None


class DecodeFirst:
    """The smallest share under which a decode step keeps its target; the rest is prefill's (as MuxWise describes)."""

    def __init__(self, slo: SLO, oracle: str) -> None:
        self._load = Load.of(measured(oracle))
        self._target = (slo.tpot_milliseconds or 10**6) / 1000

    def tick(self, o: Observation, split: Split) -> Split | None:
        self._load = advance(self._load, o)
        rows = [r for r in o.running if not r.uncomputed_tokens]
        step, row, position = self._load.model.costs(Phase.DECODE, len(rows))
        seconds = step + row * len(rows) + position * sum(r.prompt_tokens + r.output_tokens for r in rows)
        for y in range(10, 100, 10):
            to = Split(prefill=100 - y, decode=y)
            if seconds / self._load.model.speed(Phase.DECODE, to) <= self._target:
                return to if to != split else None
        return None


class Table:
    """By the decode batch alone, six shares (as SGLang's pdmux: 36 rows for the whole range)."""

    def tick(self, o: Observation, split: Split) -> Split | None:
        rows = sum(not r.uncomputed_tokens for r in o.running)
        index = min(max(rows * 6 // 36, 1), 6)
        to = Split(prefill=100 - 100 * index // 8, decode=100 * index // 8)
        return to if to != split else None


POLICIES: dict[str, Callable[[SLO, str], Controller]] = {
    "100/100": lambda slo, oracle: Constant(),
    "auto": lambda slo, oracle: Auto(slo, oracle),
    "auto-unprofiled": lambda slo, oracle: Auto(slo, oracle, profiled=False),
    "auto+mixed": lambda slo, oracle: Auto(slo, oracle, mixes=True),
    "algorithm1": lambda slo, oracle: Auto(slo, oracle, algorithm1=True),
    "algorithm1-printed": lambda slo, oracle: Printed(slo),
    "decode-first": lambda slo, oracle: DecodeFirst(slo, oracle),
    "pdmux-table": lambda slo, oracle: Table(),
}
