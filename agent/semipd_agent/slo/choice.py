"""What `decide` answers, and how a decision is told to people. Pure; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from semipd_agent.contract import DecisionReason
from semipd_agent.slo.future import Prediction
from semipd_engine.contract import Split


@dataclass(frozen=True)
class Decision:
    to: Split
    reason: str
    metric: str
    before: Prediction
    after: Prediction
    behind: float = 0.0
    """What the split in force stays behind the model."""


@dataclass(frozen=True)
class Hold:
    reason: str
    best: Prediction | None = None
    here: Prediction | None = None


REASONS = {"Regret": DecisionReason.REGRET, "Headroom": DecisionReason.HEADROOM_RECLAIMED}


def said(d: Decision) -> str:
    """Why, in one sentence that its own figures bear out."""
    before, after = d.before, d.after
    here = str(before.split)
    if d.reason == "Headroom":
        return (
            f"the configured split serves this load as {here} does: {100 * after.attainment:.1f} % of the requests "
            "expected within both targets"
        )
    told = f"{100 * after.attainment:.1f} % of the requests expected within both targets"
    if d.reason == "Regret":
        return f"{told}; {here} gives {100 * d.behind:.1f} points less than the same model says of it"
    if abs(after.attainment - before.attainment) >= 0.005:
        return f"{told} instead of {100 * before.attainment:.1f} %"
    return (
        f"{told}, as under {here}, but less late where they miss: TTFT {after.ttft:.1f} s and TPOT "
        f"{1000 * after.tpot:.0f} ms instead of {before.ttft:.1f} s and {1000 * before.tpot:.0f} ms"
    )
