"""What would happen to these requests under that split: two phases in virtual time, a few microseconds a request. Pure.

Prefill serves one prompt after the other, first come first served, when the batch has a place and the cache has room;
decode serves all others in one batch whose step grows with rows and context. While both are busy each runs at its
speed under the split; a phase that is alone has the device. Work is a fluid: chunks, plans and step boundaries are
below what a choice between splits needs. Without isolation a prompt goes on by a chunk, and each row by a token, in
each step. It knows no policy, and of the engine only these rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from semipd_agent.slo.knots import Knots


class Job(NamedTuple):
    at: float
    """Arrival, seconds."""
    work: float
    """Seconds of prefill at the whole device."""
    context: int
    """Positions that it reads in decode, on average: the prompt and half of the output."""
    output: int
    """Tokens, the first one included."""


class Live(NamedTuple):
    """A request that decodes already."""

    first_token_at: float
    done: int
    """Tokens so far."""
    output: int
    """Tokens in the end (a guess)."""
    context: int


class Outcome(NamedTuple):
    ttft: float
    tpot: float
    """0 for a single token."""


REFUSED = 2.0
"""Who is not let in counts as one that is so many times as late as the gate allows: a miss, and nothing worse."""


@dataclass(frozen=True)
class Machine:
    """One split's speeds and what holds for all."""

    step: float
    row: float
    position: float
    """Seconds of a decode step alone: fixed, for each row, for each position read ..."""
    prefill_speed: float
    decode_speed: float
    """While both are busy (0-1)."""
    max_rows: int
    kv_tokens: int
    chunk: float = 0.0
    """Above 0: prompts are computed in decode's steps, which hold so much of `Job.work` at most ..."""
    chunk_tokens: int = 1
    """... and so many tokens, rows included ..."""
    chunk_base: float = 0.0
    chunk_rate: float = 1.0
    """... of which a prompt's part takes seconds: this, and that for each second of `Job.work`, in which the fixed part
    of the engine's full chunks is spread over tokens. Small steps pay it more often ..."""
    late: float = math.inf
    """Who comes and would have its first token later than so many seconds is not let in (`admission`)."""
    mixed: float = 1.0
    """... and take this times the longer of the two fixed parts, and what rows add."""
    bend: Knots = Knots()
    """... of which the first two take this factor by the number of rows."""


def replay(machine: Machine, jobs: Sequence[Job], live: Sequence[Live] = (), now: float = 0.0) -> list[Outcome]:
    """Outcomes of `jobs` (in order of service; those before `now` wait already), then of `live`.

    Runs until every request has finished.
    """
    ttft, tpot = latencies(machine, jobs, live, now)
    return [Outcome(a, b) for a, b in zip(ttft + [0.0] * len(live), tpot, strict=True)]


def latencies(
    machine: Machine, jobs: Sequence[Job], live: Sequence[Live] = (), now: float = 0.0
) -> tuple[list[float], list[float]]:
    """The same as columns: TTFT of `jobs`, and TPOT of `jobs` and `live`."""
    per_position, bend = machine.position, machine.bend
    slow_prefill, slow_decode = machine.prefill_speed, machine.decode_speed
    max_rows, room = max(1, machine.max_rows), machine.kv_tokens or 1 << 60
    chunk, chunk_tokens, mixed = machine.chunk, machine.chunk_tokens, machine.mixed
    chunk_base, chunk_rate = machine.chunk_base, machine.chunk_rate
    count = len(jobs)
    ttft, tpot = [0.0] * count, [0.0] * (count + len(live))
    # By the number of rows, which are looked up more often than there are numbers.
    most = min(count + len(live), max(max_rows, len(live)))
    factors = [bend(rows) for rows in range(most + 1)] if bend.at else [1.0] * (most + 1)
    by_rows = [factor * (machine.step + machine.row * rows) for rows, factor in enumerate(factors)]
    t, progress, context = now, 0.0, 0
    batch: list[tuple[float, int, float, int, int]] = []
    """(progress at its end, index, first token at, context, tokens after the first)"""
    for k, one in enumerate(live):
        batch.append((float(max(1, one.output - one.done)), count + k, one.first_token_at, one.context, one.output - 1))
        context += one.context
    heapify(batch)
    following, current, left = 0, -1, 0.0
    coming, never = iter(jobs), (math.inf, 0.0, 0, 0)
    at, work, size, output = next(coming, never)
    came, whole, taken, length = at, work, size, output  # of the current one, as the four above of the following one
    late = machine.late
    while True:
        rows = len(batch)
        if current < 0 and at <= t and now < at < t - late / 4 and late < t - at + work / (slow_prefill if rows else 1):
            ttft[following] = REFUSED * late
            following += 1
            at, work, size, output = next(coming, never)
            continue
        if current < 0 and at <= t and (not rows or (rows < max_rows and context + size <= room)):
            current, left = following, work
            came, whole, taken, length = at, work, size, output
            following += 1
            at, work, size, output = next(coming, never)
        if rows:
            step = by_rows[rows] + per_position * context
            ends = batch[0][0] - progress
            if current >= 0:
                if chunk:
                    # Those that wait share a step with it. Few steps with full chunks, or one that holds all of it.
                    asked = whole + work if at <= t else whole
                    full = chunk * max(0.05, 1 - rows / chunk_tokens)
                    part = asked / math.ceil(asked / full - 0.02) if asked > full else asked
                    fixed = machine.step * factors[rows]
                    rate = 1 / (mixed * (max(fixed, chunk_base + chunk_rate * part) + step - fixed))
                    slow_prefill = part * rate
                else:
                    rate = slow_decode / step
                by_decode = ends / rate
                by_prefill = left / slow_prefill if left else 0.0  # all of it was cached
                if by_prefill <= by_decode:
                    t += by_prefill
                    progress += by_prefill * rate
                    left = 0.0
                else:
                    t += by_decode
                    progress = batch[0][0]
                    left -= by_decode * slow_prefill
            else:
                by_decode = ends * step
                if t < at < t + by_decode:
                    progress += (at - t) / step
                    t = at
                    continue
                t += by_decode
                progress = batch[0][0]
            over = progress + 1e-9
            while batch and batch[0][0] <= over:
                _, index, first, gone, tokens = heappop(batch)
                context -= gone
                tpot[index] = (t - first) / (tokens if tokens > 1 else 1)
        elif current >= 0:
            if chunk and left:
                part = left / math.ceil(left / chunk)
                t += left / part * mixed * max(machine.step, chunk_base + chunk_rate * part)
            else:
                t += left
            left = 0.0
        elif following < count:
            t = max(t, at)
            continue
        else:
            break
        if current >= 0 and left <= 1e-12:
            ttft[current] = t - came
            if length > 1:
                heappush(batch, (progress + length - 1, current, t, taken, length - 1))
                context += taken
            current = -1
    return ttft, tpot
