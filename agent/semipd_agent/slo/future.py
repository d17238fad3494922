"""One future for all splits: what is there now, then the arrivals of the present regime once more. Pure.

`Future.play` plays it under a split and scores each request by how surely it meets both targets: between 0 and 1,
because a model errs, so there is a slope where plain attainment is flat. One that misses counts by how far, too: where
no split keeps the targets, the one under which requests are least late is still the best. Decides nothing.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from semipd_agent.contract import SLO, Bounds
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.load import Load
from semipd_agent.slo.preparation import Preparation
from semipd_agent.slo.replay import Job, Live, latencies
from semipd_engine.contract import Observation, Phase, Split

LEAST_LOAD_ERROR = 0.03
"""A load that is known better than this is played once."""


@dataclass(frozen=True)
class Constants:
    """Seconds, and parts of one (0-1)."""

    horizon: float = 60.0
    """Least future that is played."""
    glance: int = 160
    longest: int = 500
    """Requests that are played under every split, and under the few that look best (three times: `Future.loads`)."""
    finalists: int = 3
    least_requests: int = 10
    least_span: float = 15.0
    """A pod, or a regime, that is younger is moved in an emergency only."""
    softness: float = 12.0
    """Slope of a request's score at its target, in logarithms of latency: an error of the model of about 15 %."""
    pace_softness: float = 32.0
    """The same of TPOT once it was seen what a share does to decode: what a step takes is known within some percent
    then, and a TPOT is a mean over many. Waits add up whatever is known."""
    tail: float = 0.3
    hopeless: float = 100.0
    """What a miss costs beyond its score: nothing at the target, this where it is so many times late or more, and in
    between by the logarithm."""
    least_assumed: float = 0.15
    """While it was not seen yet what a share does, no phase is given less: an assumed curve errs most at its end."""
    min_gain: float = 0.01
    emergency_gain: float = 0.10
    emergency_z: float = 1.0
    long_queue: int = 8
    z: float = 0.3
    z_per_move: float = 0.5
    block: float = 10.0
    """Requests of so many seconds count as one in the standard error, for waits hang together."""
    period: float = 5.0
    hurried: float = 2.0
    """Between two evaluations: at rest, and after a change of the load ..."""
    second_look: float = 1.0
    """... and then, once the last one was about to move."""
    confirmations: int = 2
    dwell: float = 5.0
    """Since the last move."""
    cold_dwell: float = 15.0
    """The same where a rung must be prepared, but in an emergency."""
    cold_cost: float = 0.01
    """What its worker's start costs those who are served beside it, as a part of a horizon's requests (assumed)."""
    forget_bias: float = 300.0
    most_bias: float = 0.2
    regret: float = 0.05
    """A split that stays behind the model by less does not ..."""
    regret_z: float = 2.5
    """... nor one by less than so many standard errors."""
    as_good: float = 0.003
    home_after: float = 120.0
    """A load must have been another one for so long before the configured split comes back for it: one that turns soon
    would have to be answered all over again."""
    content: float = 0.97
    """The configured split comes back into force where it scores at least this, and not that much less than another."""
    least_realised: int = 30


@dataclass(frozen=True)
class Prediction:
    """Of one split: over the requests that were played."""

    split: Split
    attainment: float
    """Part of the requests that meets both targets."""
    ttft: float
    tpot: float
    """At the SLO's percentile, seconds."""


@dataclass(frozen=True)
class Setting:
    """What holds for one decision beside the observation."""

    slo: SLO
    split: Split
    bounds: Bounds
    grid: Grid = Grid()
    home: Split | None = None
    """The configured split; None: the one in force is as good as any."""
    mixes: bool = False
    """No isolation is a choice, too."""
    preparation: Preparation | None = None
    """None: every split is in force at once."""
    late: float = math.inf
    """Who would have its first token later than so many seconds is refused (`admission`)."""
    constants: Constants = Constants()

    def may(self, to: Split) -> bool:
        """Could `to` be made ready, as far as is known?"""
        return self.preparation is None or to == self.split or self.preparation.may(to)

    def delay(self, to: Split) -> float:
        """Seconds until `to` would be in force."""
        return 0.0 if self.preparation is None or to == self.split else self.preparation.takes(to)


@dataclass(frozen=True)
class Played:
    scores: Sequence[float]
    ttft: Sequence[float]
    tpot: Sequence[float]
    """0 for a single token."""
    met: int
    means: tuple[float, ...] = ()
    """Mean score under each of the loads that were played."""

    @cached_property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    def error(self, other: Played, blocks: Sequence[int]) -> float:
        """Standard error of the mean difference, from the sums of blocks: by how much each differs from the next, for a
        queue that grows is a trend and no chance."""
        sums = [0.0] * (max(blocks) + 1)
        for block, a, b in zip(blocks, self.scores, other.scores, strict=True):
            sums[block] += a - b
        n = len(sums)
        if n < 3:
            return 0.05
        return math.sqrt(sum((v - w) ** 2 for v, w in itertools.pairwise(sums)) / 2 * n / (n - 1)) / len(blocks)

    def told(self, split: Split, s: Setting) -> Prediction:
        p = s.slo.percentile
        tpot = [seconds for seconds in self.tpot if seconds]
        return Prediction(split, self.met / len(self.scores), _percentile(self.ttft, p), _percentile(tpot, p))


@dataclass(frozen=True)
class Future:
    """What all splits are played against."""

    o: Observation
    load: Load
    setting: Setting
    jobs: tuple[Job, ...]
    waiting: int
    """How many of the jobs are there already."""
    live: tuple[Live, ...]
    blocks: tuple[int, ...]
    turns: float = 1.0
    """How many times the regime's arrivals are played: the second time they tell nothing new."""

    @classmethod
    def of(cls, o: Observation, load: Load, s: Setting) -> Future:
        now, c = o.at, s.constants
        waiting, live = load.backlog(o)
        window = load.window(now)[-c.longest :]
        span = max(now - max(load.regime_since, window[0].at - 1e-3), 5.0)
        once = [one for one in window if one.at >= now - span]
        jobs = list(waiting)
        again = max(1, math.ceil(c.horizon / span))
        for turn in range(again):
            offset = now + turn * span - (now - span)
            jobs += [load.job(one, one.at + offset, o.prefill_chunk_tokens) for one in once]
            if len(jobs) > c.longest:
                break
        jobs = jobs[: c.longest + len(waiting)]
        turns = (len(jobs) - len(waiting)) / max(1, len(once))
        blocks = [0] * len(waiting) + [1 + int((job.at - now) / c.block) for job in jobs[len(waiting) :]]
        return cls(o, load, s, tuple(jobs), len(waiting), tuple(live), tuple(blocks), max(1.0, turns))

    @property
    def loads(self) -> tuple[float, ...]:
        """What the load may truly be, relative to what arrived: as it came, and a standard error less and more.
        Requests that ask for much are few: a young regime says little of its load, and waits bend upwards with it."""
        work = [job.work for job in self.jobs[self.waiting :]]
        total = sum(work)
        if not total:
            return (1.0,)
        error = math.sqrt(self.turns * sum(w * w for w in work)) / total
        return (1.0,) if error < LEAST_LOAD_ERROR else (1.0, 1 / (1 + min(error, 0.5)), 1 + min(error, 0.5))

    def _under(self, times: float) -> tuple[Job, ...]:
        """The jobs, those to come as many times as close together."""
        now = self.o.at
        if times not in self._loaded:
            self._loaded[times] = tuple(
                job if times == 1.0 or job.at <= now else job._replace(at=now + (job.at - now) / times)
                for job in self.jobs
            )
        return self._loaded[times]

    @cached_property
    def _loaded(self) -> dict[float, tuple[Job, ...]]:
        return {}

    def error(self, a: Played, b: Played) -> float:
        """Standard error of the mean difference of two splits. A future of nine seconds' arrivals, played again and
        again, is as uncertain as nine seconds are; and what holds under one of the loads only is not sure."""
        gains = [x - y for x, y in zip(a.means, b.means, strict=True)]
        mean = sum(gains) / len(gains)
        between = sum((gain - mean) ** 2 for gain in gains) / len(gains)
        return math.sqrt(self.turns * a.error(b, self.blocks) ** 2 + between)

    def of_those_here(self, a: Played, b: Played, delay: float = 0.0) -> float:
        """Mean difference of two splits over the requests that wait already. Whose first token comes under `b` before
        `a` would be in force, so many seconds from now, gains and loses nothing."""
        ready = self.o.at + delay
        touched = [n for n in range(self.waiting) if not delay or self.jobs[n].at + b.ttft[n] > ready]
        return (sum(a.scores[n] for n in touched) - sum(b.scores[n] for n in touched)) / max(1, self.waiting)

    def play(self, split: Split, most: int, loads: Sequence[float] = (1.0,)) -> Played:
        """Under each of these loads; scores are their means, latencies those of the first one, the load as it came."""
        machine, slo = self.load.machine(split, self.o), self.setting.slo
        if self.setting.late < math.inf:
            machine = replace(machine, late=self.setting.late)
        targets = (seconds_of(slo.ttft_milliseconds), seconds_of(slo.tpot_milliseconds))
        played, now, known = list[Played](), self.o.at, self.load.model.law_known(Phase.DECODE)
        for times in loads:
            jobs = self._under(times)[: self.waiting + most]
            ttft, tpot = latencies(machine, jobs, self.live, now)
            played.append(score(ttft, tpot[: len(ttft)], *targets, self.setting.constants, known=known))
        scores, count = played[0].scores, len(played)
        if count > 1:
            for other in played[1:]:
                scores = list(map(operator.add, scores, other.scores))
            scores = [total / count for total in scores]
        return replace(played[0], scores=scores, means=tuple(one.mean for one in played))


def score(
    first: Sequence[float], per_token: Sequence[float], ttft: float, tpot: float, c: Constants, *, known: bool = False
) -> Played:
    """Of requests with these TTFT and TPOT, seconds. At most 1, which a request well within its targets has, and at
    least ``-c.tail``. `known`: it was seen what a share does to decode."""
    soft, soft_pace = c.softness, c.pace_softness if known else c.softness
    hopeless, log = c.hopeless, math.log
    per_fold = c.tail / log(hopeless)
    scores, met = list[float](), 0
    for a, b in zip(first, per_token, strict=True):
        late, slow = a / ttft, b / tpot
        in_time = 1.0 / (1.0 + late**soft) if late < 4 else 0.0
        in_pace = 1.0 / (1.0 + slow**soft_pace) if slow < 4 else 0.0
        one = in_time if in_time <= in_pace else in_pace
        worst = late if late >= slow else slow
        if worst <= 1:
            met += 1
        else:
            one -= per_fold * log(worst if worst < hopeless else hopeless)
        scores.append(one)
    return Played(scores, first, per_token, met)


def seconds_of(milliseconds: int | None) -> float:
    return milliseconds / 1000 if milliseconds is not None else math.inf


def _percentile(values: Sequence[float], p: float) -> float:
    return sorted(values)[max(1, math.ceil(p / 100 * len(values))) - 1] if values else 0.0
