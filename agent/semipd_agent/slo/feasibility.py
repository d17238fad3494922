"""Can any split meet the targets? A verdict with memory: slow to condemn, slower to acquit. Pure.

`Judge` turns a doubt on each tick into a verdict and forgets it without traffic; `unloaded` and `pressures` ask the
model of the two phases what is in the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from semipd_agent.contract import SLO
from semipd_agent.slo.load import Load
from semipd_agent.slo.replay import Outcome
from semipd_engine.contract import Observation, Phase

INFEASIBLE_AFTER, FEASIBLE_AFTER = 10.0, 30.0
"""Seconds."""
SWAMPED, SWAMPED_AFTER = 2.0, 3.0
"""Where even the best split is so many times above a target, so many seconds are enough: a longer doubt only lets a
queue grow that nobody can serve in time. Acquittal is as slow as ever, so verdicts do not flap."""

MESSAGES = {
    "TargetBelowServiceTime": "a single request on the idle device takes longer than the target: neither another split "
    "nor another pod helps",
    "KVBound": "requests wait for room in the KV cache or the batch, whatever the split: another pod helps",
    "TTFTBound": "no split in reach keeps the TTFT target under this load: another pod helps",
    "TPOTBound": "no split in reach keeps the TPOT target under this load: another pod helps",
    "Overloaded": "no split in reach keeps either target under this load: another pod helps",
    "Doubtful": "no split seems to keep the targets under this load: judged once that has lasted for "
    f"{INFEASIBLE_AFTER:g} s",
    "InsufficientTraffic": "too few requests to judge by",
    "PolicyInactive": "nothing moves the split, so nothing judges it: partition.mode is not Auto, or no share is "
    "enforced here",
    "PolicyFailed": "the policy failed and the split holds; the pod's message says how",
    "NoObservation": "the engine does not tell what it observes",
}
"""What the report says beside the reason: whether another pod helps, or why nobody knows."""


@dataclass(frozen=True)
class Judge:
    """False after a while of trouble on every tick; True at first sight of none, or after a longer while of it; unknown
    once there has been too little traffic to tell for as long."""

    feasible: bool | None = None
    reason: str = ""
    troubled: bool = False
    since: float = -math.inf
    known_at: float = -math.inf

    @property
    def said(self) -> str:
        """The reason, a doubt's before the first verdict, too; empty: there is nothing to say."""
        return self.reason or ("Doubtful" if self.troubled and self.feasible is None else "")

    def told(self, trouble: str, *, known: bool, now: float, pressure: float = 1.0) -> Judge:
        """`trouble`: what speaks against feasibility, or empty. `known`: there is enough traffic to tell. `pressure`:
        latency over target, the larger one, at the best split."""
        judge = self
        if bool(trouble) != judge.troubled or judge.since == -math.inf:
            judge = replace(judge, troubled=bool(trouble), since=now)
        if known or trouble:
            judge = replace(judge, known_at=now)
        lasted = now - judge.since
        if trouble:
            needed = SWAMPED_AFTER if pressure >= SWAMPED else INFEASIBLE_AFTER
            return replace(judge, feasible=False, reason=trouble) if lasted >= needed else judge
        if known:
            free = judge.feasible is None or lasted >= FEASIBLE_AFTER
            return replace(judge, feasible=True, reason="") if free else judge
        if now - judge.known_at >= FEASIBLE_AFTER:
            return replace(judge, feasible=None, reason="")
        return judge


def unloaded(load: Load, o: Observation, slo: SLO) -> bool:
    """Would a request at the SLO's percentile of length miss its target on an idle device?"""
    prompts = sorted(one.prompt * one.uncached for one in load.seen.values())
    if not prompts:
        return False
    prompt = prompts[max(1, math.ceil(slo.percentile / 100 * len(prompts))) - 1]
    step, row, position = load.model.costs(Phase.DECODE, 1)
    late = slo.ttft_milliseconds and load.work(prompt, o.prefill_chunk_tokens) > slo.ttft_milliseconds / 1000
    slow = slo.tpot_milliseconds and step + row + position * prompt > slo.tpot_milliseconds / 1000
    return bool(late or slow)


def pressures(outcomes: list[Outcome], slo: SLO) -> tuple[float, float]:
    """Latency over target at the SLO's percentile: of TTFT, of TPOT; 0 without a target or samples."""

    def one(values: list[float], target: int | None) -> float:
        if target is None or not values:
            return 0.0
        return sorted(values)[max(1, math.ceil(slo.percentile / 100 * len(values))) - 1] * 1000 / target

    return one([o.ttft for o in outcomes], slo.ttft_milliseconds), one(
        [o.tpot for o in outcomes if o.tpot], slo.tpot_milliseconds
    )
