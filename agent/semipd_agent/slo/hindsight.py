"""What a split gave against what the model says, afterwards, that it should have given. Pure.

The requests that did come are played under the split that was in force, from the backlog that was there: what is left
between that and what they got is the model's error about this split. A load that nobody could foresee is in both, and
so is nobody's fault. It decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from semipd_agent.slo.future import Setting, score, seconds_of
from semipd_agent.slo.load import Load
from semipd_agent.slo.replay import Job, Live, latencies
from semipd_engine.contract import Observation, Phase, Split

LEAST_SECONDS, MOST_SECONDS = 30.0, 120.0
"""A stretch is judged once it is this long and has enough requests, and given up where it never gets them."""
BLOCK_SECONDS = 5.0
"""Requests of so many seconds count as one in the standard error: six in the shortest stretch."""


@dataclass(frozen=True)
class Watch:
    """The begin of a stretch under one split: what was there."""

    since: float
    split: Split
    jobs: tuple[Job, ...]
    live: tuple[Live, ...]

    @classmethod
    def began(cls, split: Split, o: Observation, load: Load) -> Watch:
        jobs, live = load.backlog(o)
        return cls(o.at, split, tuple(jobs), tuple(live))

    def judged(self, o: Observation, load: Load, s: Setting) -> tuple[float, float] | None:
        """(realised less played mean score, its standard error) of the requests that came since and are over; None: too
        few of them."""
        c, slo, known = s.constants, s.slo, load.model.law_known(Phase.DECODE)
        if load.known_since > self.since:
            return None  # another core, or too many requests to remember them all: nobody knows what was there
        came = [one for one in load.seen.values() if one.at >= self.since and one.id >= 0]
        over = [k for k, one in enumerate(came) if one.ttft is not None]
        if len(over) < c.least_realised:
            return None
        jobs = list(self.jobs)
        for one in came:
            job = load.job(one, one.at, o.prefill_chunk_tokens)
            jobs.append(job if one.output else job._replace(output=max(1, one.left)))  # who went away decoded no more
        machine = load.machine(self.split, o)
        ttft, tpot = (column[len(self.jobs) :] for column in latencies(machine, jobs, self.live, self.since))
        targets = seconds_of(slo.ttft_milliseconds), seconds_of(slo.tpot_milliseconds)
        real = score([came[k].ttft or 0.0 for k in over], [came[k].tpot or 0.0 for k in over], *targets, c, known=known)
        should = score([ttft[k] for k in over], [tpot[k] for k in over], *targets, c, known=known)
        blocks = [int((came[k].at - self.since) / BLOCK_SECONDS) for k in over]
        return real.mean - should.mean, real.error(should, blocks)
