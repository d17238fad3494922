"""What became of each request, and what that means against a target. Pure; knows no network and no clock.

TTFT runs from the time that the plan had for the request to its first token, so that a client that is late cannot hide
it; TPOT is (last token − first token) / (tokens − 1) and needs two tokens; a gap is the time between two consecutive
tokens of one request. All seconds are offsets from the start of the replay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

HUNG_UP = "hung_up"
"""Finish reason of a stream that the client closed as planned."""


@dataclass(frozen=True)
class Record:
    """One request as the client saw it."""

    index: int
    label: str
    planned: float
    sent: float
    token_times: tuple[float, ...] = ()
    token_ids: tuple[int, ...] = ()
    text: str = ""
    prompt_tokens: int = 0
    """As the server counted them; 0 if it did not say."""
    finish_reason: str | None = None
    status: int = 0
    """HTTP status; 0 if no answer came."""
    error: str | None = None
    ended: float | None = None
    """When the client had the last of it: the end of the answer, an error, or its own hanging up."""

    @property
    def ok(self) -> bool:
        return self.error is None and self.finish_reason is not None

    @property
    def rejected(self) -> bool:
        """Refused by admission (429 or 503), not failed."""
        return self.status in (429, 503)

    @property
    def ttft(self) -> float | None:
        return self.token_times[0] - self.planned if self.token_times else None

    @property
    def late(self) -> float:
        """How late the client sent it."""
        return self.sent - self.planned

    @property
    def tpot(self) -> float | None:
        times = self.token_times
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None

    @property
    def gaps(self) -> list[float]:
        return gaps(self.token_times)

    @property
    def longest_gap(self) -> float | None:
        """A stream that the client closed was still waiting: from its last token to then is a gap, too."""
        open_gap = [] if self.waiting is None else [self.waiting]
        return max([*self.gaps, *open_gap], default=None)

    @property
    def waiting(self) -> float | None:
        """Of a stream that the client closed: how long its next token had been due then, at most."""
        if self.finish_reason != HUNG_UP or self.ended is None or not self.token_times:
            return None
        return self.ended - self.token_times[-1]


def gaps(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def quantile(values: Iterable[float], percent: float) -> float | None:
    """Nearest-rank quantile: the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True)
class Distribution:
    """Nearest-rank quantiles, in milliseconds."""

    p50: float
    p90: float
    p99: float
    max: float
    samples: int


def distribution(seconds: Iterable[float | None]) -> Distribution | None:
    values = [value * 1000 for value in seconds if value is not None]
    if not values:
        return None
    p50, p90, p99, top = (quantile(values, percent) or 0.0 for percent in (50, 90, 99, 100))
    return Distribution(p50, p90, p99, top, len(values))


@dataclass(frozen=True)
class Target:
    """An SLO in milliseconds; None: no target for that metric."""

    ttft: float | None = None
    tpot: float | None = None
    gap: float | None = None
    """For the longest gap of a request."""

    def met_by(self, record: Record) -> bool:
        """A request that failed, was rejected or brought no token meets no target; one of a single token has neither
        TPOT nor gap, and cannot miss them."""
        if not record.ok or not record.token_times:
            return False
        pairs = ((self.ttft, record.ttft), (self.tpot, record.tpot), (self.gap, record.longest_gap))
        return all(limit is None or value is None or value * 1000 <= limit for limit, value in pairs)


@dataclass(frozen=True)
class Summary:
    requests: int
    ok: int
    rejected: int
    failed: int
    tokens: int
    seconds: float
    """From the first request sent to the last token."""
    ttft: Distribution | None
    tpot: Distribution | None
    longest_gap: Distribution | None
    late: Distribution | None
    """How late the client itself sent: a large value means that the client, not the server, was the bottleneck."""
    attainment_percent: float | None = None
    """Requests that met every target, of all that were sent; None without a target."""
    errors: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """For people."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        counts = f"{self.requests} requests: {self.ok} ok, {self.rejected} rejected, {self.failed} failed"
        text = [f"{counts}; {self.tokens} tokens in {self.seconds:.1f} s ({rate:.1f}/s)"]
        for name in ("ttft", "tpot", "longest_gap", "late"):
            if (found := getattr(self, name)) is not None:
                quantiles = "   ".join(f"{key} {getattr(found, key):8.1f}" for key in ("p50", "p90", "p99", "max"))
                text.append(f"{name.replace('_', ' '):12} {quantiles}  ms")
        if self.attainment_percent is not None:
            text.append(f"{'attainment':12} {self.attainment_percent:.1f} %")
        return text + [f"error: {message}" for message in self.errors]


def summarise(records: Sequence[Record], target: Target | None = None) -> Summary:
    done = [record for record in records if record.ok]
    rejected = [record for record in records if record.rejected]
    failed = [record for record in records if not record.ok and not record.rejected]
    ends = [record.token_times[-1] for record in records if record.token_times]
    begin = min((record.sent for record in records), default=0.0)
    met = sum(target.met_by(record) for record in records) if target else 0
    return Summary(
        requests=len(records),
        ok=len(done),
        rejected=len(rejected),
        failed=len(failed),
        tokens=sum(len(record.token_times) for record in records),
        seconds=max(ends, default=begin) - begin,
        ttft=distribution(record.ttft for record in done),
        tpot=distribution(record.tpot for record in done),
        longest_gap=distribution(record.longest_gap for record in done),
        late=distribution(record.late for record in records),
        attainment_percent=100 * met / len(records) if target and records else None,
        errors=tuple(sorted({record.error or "no finish reason" for record in failed}))[:5],
    )


class ClientLateError(Exception):
    """The client did not keep to its plan: what it measured is its own."""


def assert_punctual(records: Sequence[Record], most_seconds: float = 0.05) -> None:
    """Raises `ClientLateError` if more than one request in a hundred left later than that after its planned time."""
    late = quantile((record.late for record in records), 99)
    if late is not None and late > most_seconds:
        raise ClientLateError(f"the client itself sent {late * 1000:.0f} ms late (p99): the machine is too busy")


def write(records: Iterable[Record], path: Path) -> None:
    """JSON Lines, one record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))


def read(path: Path) -> list[Record]:
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return [Record(**row | {key: tuple(row[key]) for key in ("token_times", "token_ids")}) for row in rows]
