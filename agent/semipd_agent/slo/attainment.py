"""Which requests meet the targets, seen while they suffer: finished, running, waiting, abandoned and refused ones.
Pure.

A request is judged by both targets together. One that is not over is a miss as soon as it cannot be anything else,
and is left out until then: who still waits past the TTFT target, or whose stream has fallen behind its TPOT target,
is counted now and not when it ends. A client that went away counts as a miss if it had reason to; a refused one
always does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from semipd_agent.contract import SLO
from semipd_engine.contract import FinishedRequest, Observation

BEHIND_SECONDS, BEHIND_TOKENS = 1.0, 20
"""A stream that runs has missed once it is so far behind its target's pace: a pause early on may still be made up."""


@dataclass(frozen=True)
class Attainment:
    """Of the window, and of what is there now."""

    requests: int = 0
    met: int = 0
    ttft: tuple[float, ...] = ()
    """Seconds; of those still without a first token that are late already, their age."""
    tpot: tuple[float, ...] = ()
    refused: int = 0

    @property
    def joint(self) -> float | None:
        return self.met / self.requests if self.requests else None


def attainment(finished: Iterable[FinishedRequest], o: Observation | None, slo: SLO) -> Attainment:
    """`finished`: of the window. `o`: what is there now, or None."""
    most_ttft = slo.ttft_milliseconds / 1000 if slo.ttft_milliseconds else float("inf")
    most_tpot = slo.tpot_milliseconds / 1000 if slo.tpot_milliseconds else float("inf")
    requests = met = refused = 0
    ttft: list[float] = []
    tpot: list[float] = []
    for r in finished:
        if r.finish_reason == "rejected":
            requests, refused = requests + 1, refused + 1
            continue
        waited = r.ttft_seconds if r.ttft_seconds is not None else r.finished_at - r.received_at
        missed = waited > most_ttft or (r.tpot_seconds or 0.0) > most_tpot
        if r.finish_reason in ("abort", "error") and r.ttft_seconds is None and not missed:
            continue  # it went before its time was up
        requests, met = requests + 1, met + (not missed)
        if r.ttft_seconds is not None or missed:
            ttft.append(waited)
        if r.tpot_seconds is not None:
            tpot.append(r.tpot_seconds)
    if o is not None:
        alive = [(q.received_at, q.first_token_at, q.output_tokens) for q in o.queue]
        alive += [(r.received_at, r.first_token_at, r.output_tokens) for r in o.running]
        for received, first, tokens in alive:
            waited = (first if first is not None else o.at) - received
            late = waited > most_ttft
            pace = (o.at - first) / max(1, tokens) if first is not None else 0.0
            behind = first is not None and pace > most_tpot
            if behind:
                lag = (o.at - (first or 0.0)) - tokens * most_tpot
                behind = tokens >= BEHIND_TOKENS or lag > BEHIND_SECONDS
            if late or behind:
                requests += 1
                if late:
                    ttft.append(waited)
                if behind:
                    tpot.append(pace)
    return Attainment(requests, met, tuple(ttft), tuple(tpot), refused)
