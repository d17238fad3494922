"""The first move of a pod with a measured profile, made before there is anything to play a future of. Pure.

Whichever split is configured, the first requests decide nothing: a dozen of them must come, and some must end. What the
profile and the targets say alone is how much of the device prefill may have before decode is too slow, and a queue of
prompts is what cannot be caught up with later. So prefill gets that much at the first request, and the future decides
from there on. It gives decode no more than it has: how many rows there will be nobody knows yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from semipd_agent.slo.candidates import candidates
from semipd_agent.slo.future import Setting
from semipd_agent.slo.load import Load
from semipd_agent.slo.policy import decode_share, prefill_share
from semipd_agent.slo.step_model import ShareLaw
from semipd_engine.contract import Phase, Split

ROWS = 12
"""Sequences that decode, by which the first split is measured: a step's fixed part is most of it on any device."""
MARGIN = 0.85
"""Of the TPOT target: a profile is some percent off, and knows nothing of contention."""


@dataclass(frozen=True)
class Opening:
    to: Split
    tpot: float
    """Seconds that a token takes with `ROWS` sequences while prompts are computed all the time."""

    @property
    def said(self) -> str:
        return (
            f"before any evidence: the most prefill with which, by the profile, {ROWS} answers keep the TPOT target "
            f"({1000 * self.tpot:.0f} ms a token beside prompts)"
        )


def opening(load: Load, s: Setting) -> Opening | None:
    """None: nothing was measured, nobody came yet, or the split in force gives prefill as much already."""
    target = s.slo.tpot_milliseconds
    profile = load.model.profile
    known = profile.measured and (profile.curves_measured or profile.law is ShareLaw.PACED)
    if not known or not target or s.slo.ttft_milliseconds is None or not load.seen:
        return None
    prompt = sum(one.prompt for one in load.seen.values()) / len(load.seen)
    step, row, position = load.model.costs(Phase.DECODE, ROWS)
    seconds = step + ROWS * (row + position * prompt)
    best = Opening(s.split, 0.0)
    for split in candidates(s):
        tpot = seconds / load.model.speed(Phase.DECODE, split)
        kept = 1000 * tpot <= MARGIN * target and decode_share(split) >= s.constants.least_assumed
        if kept and prefill_share(split) > prefill_share(best.to):
            best = Opening(split, tpot)
    return best if best.to != s.split else None
