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


@dataclass(frozen=True)
class Machine:
    """One split's speeds and what holds for all."""

    step: float
    row: float
    position: float
    """Seconds of a decode step alone: fixed, for each row, for each position read."""
    prefill_speed: float
    decode_speed: float
    """While both are busy (0-1)."""
    max_rows: int
    kv_tokens: int
    chunk: float = 0.0
    """Above 0: prompts are computed in decode's steps, which hold so many seconds of their work at most ..."""
    chunk_tokens: int = 1
    """... and so many tokens, rows included ..."""
    mixed: float = 1.0
    """... and take this times the longer of the two fixed parts, and what rows add."""


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
    fixed, per_row, per_position = machine.step, machine.row, machine.position
    slow_prefill, slow_decode = machine.prefill_speed, machine.decode_speed
    max_rows, room = max(1, machine.max_rows), machine.kv_tokens or 1 << 60
    chunk, chunk_tokens, mixed = machine.chunk, machine.chunk_tokens, machine.mixed
    count = len(jobs)
    ttft, tpot = [0.0] * count, [0.0] * (count + len(live))
    t, progress, context = now, 0.0, 0
    batch: list[tuple[float, int, float, int]] = []  # (progress at its end, index, first token at, context)
    for k, one in enumerate(live):
        batch.append((float(max(1, one.output - one.done)), count + k, one.first_token_at, one.context))
        context += one.context
    heapify(batch)
    following, current, left = 0, -1, 0.0
    while True:
        if current < 0 and following < count:
            job = jobs[following]
            if job.at <= t and (not batch or (len(batch) < max_rows and context + job.context <= room)):
                current, left = following, job.work
                following += 1
        if batch:
            step = fixed + per_row * len(batch) + per_position * context
            ends = batch[0][0] - progress
            if current >= 0:
                if chunk:
                    # Those that wait share a step with it. Few steps with full chunks, or one that holds all of it.
                    work = jobs[current].work
                    if following < count and jobs[following].at <= t:
                        work += jobs[following].work
                    full = chunk * max(0.05, 1 - len(batch) / chunk_tokens)
                    part = work / math.ceil(work / full - 0.02) if work > full else work
                    rate = 1 / (mixed * (max(fixed, part) + step - fixed))
                    slow_prefill = part * rate
                else:
                    rate = slow_decode / step
                by_decode = ends / rate
                by_prefill = left / slow_prefill
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
                arrival = jobs[following].at if following < count else t
                if t < arrival < t + by_decode:
                    progress += (arrival - t) / step
                    t = arrival
                    continue
                t += by_decode
                progress = batch[0][0]
            while batch and batch[0][0] <= progress + 1e-9:
                _, index, first, size = heappop(batch)
                context -= size
                output = jobs[index].output if index < count else live[index - count].output
                tpot[index] = (t - first) / max(1, output - 1)
        elif current >= 0:
            t += left
            left = 0.0
        elif following < count:
            t = max(t, jobs[following].at)
            continue
        else:
            break
        if current >= 0 and left <= 1e-12:
            job = jobs[current]
            ttft[current] = t - job.at
            if job.output > 1:
                heappush(batch, (progress + job.output - 1, current, t, job.context))
                context += job.context
            current = -1
    return ttft, tpot
