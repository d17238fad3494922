"""What clients wish of their requests' speed, and what comes of it: a place in the queue, and a bound on mixed steps.

Wishes are bounded by what the service promises to all (the targets of its SLO): nobody is served sooner than that at
the cost of others. A wish that is not acted upon is counted. Pure; knows no queue and no plans.
"""

from __future__ import annotations

from collections import Counter

USUAL_TARGET = 1.0
"""Seconds: the time to the first token that a request without a word of its own is taken to want, where the service
promises none."""
LONGEST_TARGET = 30.0
PRIORITY_SECONDS = 10.0
"""A step of priority counts as so much earlier an arrival: it wins for a time, never for ever."""
MOST_PRIORITY = 6


STEPS_ALONE = 2.0
"""Where the service promises no time per token, a wish for less than so many steps without prompts is taken for these:
one client's word must not hold everybody's prompts at a block a step."""


class Wishes:
    def __init__(self) -> None:
        self.ttft: float | None = None
        self.tpot: float | None = None
        """Seconds: what the service promises; None: nothing."""
        self.ignored: Counter[str] = Counter({"ttft": 0, "tpot": 0})
        """Wishes by kind in the place of which something else stood."""

    @property
    def steps_alone(self) -> float:
        """Steps without prompts that a request's wish for its next token may not go below; 0: the promise bounds it."""
        return STEPS_ALONE if self.tpot is None else 0.0

    def promise(self, ttft: float | None, tpot: float | None) -> None:
        """From now on wishes are bounded by these, seconds. Turns that are settled stay."""
        self.ttft, self.tpot = ttft, tpot

    def patience(self, priority: int = 0, ttft: float | None = None) -> float:
        """Seconds that a request may wait beside others: who came earlier, and may wait no longer, goes first.

        Between -61 and 90, so that nobody is overtaken by what arrives 150 s after it: that is the ageing. Equal words
        mean first come, first served. Without a word 0, which stands for the promise, or for `USUAL_TARGET`.
        """
        usual = USUAL_TARGET if self.ttft is None else self.ttft
        wish = usual if ttft is None else min(LONGEST_TARGET, ttft)
        if ttft is not None and self.ttft is not None:
            self.ignored["ttft"] += ttft < self.ttft
            wish = max(wish, self.ttft)
        return wish - usual + PRIORITY_SECONDS * max(-MOST_PRIORITY, min(MOST_PRIORITY, priority))

    def gap(self, tpot: float | None, aggregated: bool) -> float | None:
        """Seconds that a step of others may keep this request's next token; None: no wish of its own stands.

        Where the phases have steps of their own there is nothing to shorten: the promise serves a wish that is no
        stricter, and nothing serves another.
        """
        if tpot is None:
            return None
        if self.tpot is None:
            self.ignored["tpot"] += not aggregated
            return tpot  # `PlanBuilder` bounds it by what a step without prompts takes
        self.ignored["tpot"] += tpot < self.tpot
        return max(tpot, self.tpot)
