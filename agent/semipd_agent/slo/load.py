"""What a pod is asked to do and how fast it is: arrivals, lengths, and the step model, from observations. Pure.

State and what a replay needs of it; `advance` makes the next one. Output lengths come from finished requests with
prompts of about the same size, so that a mix that comes back is known at once; one that still runs gets a length drawn
from those that were at least as long as it is already, by its id, so that the same request gets the same draw in every
evaluation.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

from semipd_agent.slo.replay import Job, Live, Machine
from semipd_agent.slo.step_model import ASSUMED, Kind, StepModel, StepProfile
from semipd_engine.contract import Observation, Phase, Split, StepTimes

KEPT_SECONDS = 300.0
MOST_KEPT = 2000
BUCKET_SECONDS = 5.0
"""Arrivals are counted for so long each, those that are not kept, too."""
LEAST_ALIKE = 8
"""Fewer finished requests with prompts of one size say too little about its outputs."""
ENOUGH_ALIKE = 24
"""A regime that has seen fewer borrows the rest from what came before it."""
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Seen:
    """One request, as far as it is known."""

    id: int
    at: float
    prompt: int
    uncached: float
    """Part of the prompt (0-1) that was not in the prefix cache; 1 while unknown."""
    output: int = -1
    """Tokens; -1: it has not finished, or was refused; 0: its client went away, so that what it would have been is
    unknown, too."""
    ttft: float | None = None
    tpot: float | None = None
    left: int = 0
    """Tokens that it had when its client went away: the answer would have been longer."""


@dataclass(frozen=True)
class Load:
    """State; serialisable, for it holds numbers only."""

    model: StepModel = field(default_factory=lambda: StepModel(ASSUMED))
    core_id: str = ""
    at: float = 0.0
    since: float = 0.0
    """First observation of this core."""
    seen: dict[int, Seen] = field(default_factory=dict)
    """By id, in the order of `at`: a replay serves them in this order."""
    counts: dict[int, int] = field(default_factory=dict)
    """Arrivals by the number of their `BUCKET_SECONDS`."""
    total: int = 0
    """Requests that were asked for since this began, those that were refused, and those of cores before, included."""
    newest: int = -1
    """Id of the last arrival taken."""
    cursor: int = -1
    """Highest cursor of a finished request taken."""
    lengths: tuple[tuple[int, int], ...] = ()
    """Prompt and output of the requests that finished last, in the order of finishing."""
    grown: dict[int, int] = field(default_factory=dict)
    """Id -> tokens so far, of the requests that decode."""
    steps: dict[Kind, StepTimes] = field(default_factory=dict)
    regime_since: float = -math.inf
    uncached: float = 1.0
    """Mean part of a prompt that is not cached."""

    @classmethod
    def of(cls, profile: StepProfile) -> Load:
        return cls(model=StepModel(profile))

    @property
    def known_since(self) -> float:
        """All arrivals since then are kept, as far back as `KEPT_SECONDS`: what a rate may be taken over."""
        full = len(self.seen) >= MOST_KEPT
        return max(self.since, next(iter(self.seen.values())).at) if full else self.since

    def arrived(self, since: float, now: float) -> float:
        """Requests, kept or not: a storm of more than are kept does not shorten the time that a rate is taken over."""
        first, last = int(since // BUCKET_SECONDS), int(now // BUCKET_SECONDS)
        within = sum(count for number, count in self.counts.items() if first < number <= last)
        return within + self.counts.get(first, 0) * (first + 1 - since / BUCKET_SECONDS)

    # ---- what a replay needs ---------------------------------------------------------------------------------------

    def window(self, now: float) -> list[Seen]:
        """Arrivals of the present regime, oldest first."""
        return [one for one in self.seen.values() if one.at >= self.regime_since and one.at <= now]

    def output(self, one: Seen) -> int:
        """Tokens in the end: known, or drawn from those that had at least as many as it has now."""
        if one.output > 0:
            return one.output
        return self.drawn(one.id, one.prompt, self.so_far(one))

    def so_far(self, one: Seen) -> int:
        """Tokens of a request that runs, or ran until its client went away; 0: none are known."""
        return self.grown.get(one.id, one.left)

    def drawn(self, id: int, prompt: int, done: int = 0, most: int = 0) -> int:
        length = _draw(self._outputs(prompt), id, done)
        return min(length, most) if most else length

    def _outputs(self, prompt: int) -> list[int]:
        """Ascending: outputs of the present regime for prompts of about this size. One that still runs is there with
        a length drawn from those before that were at least as long, so it is not the short ones alone that count;
        where there are few, those before fill up."""
        size = prompt.bit_length()
        if size not in self._by_size:
            before = self._before(size)
            found: list[int] = []
            for near in (size - 1, size, size + 1):
                for one in self._alike.get(near, ()):
                    if one.output > 0:
                        found.append(one.output)
                    elif (done := self.so_far(one)) > 1:
                        found.append(_draw(before, one.id, done))
            if not found:
                found = before
            elif before and len(found) < ENOUGH_ALIKE:
                missing = ENOUGH_ALIKE - len(found)
                found += [before[int((k + 0.5) * len(before) / missing)] for k in range(missing)]
            self._by_size[size] = sorted(found)
        return self._by_size[size]

    def _before(self, size: int) -> list[int]:
        """Ascending: outputs of those that finished last with prompts of this power of two; of two or all of them where
        these are few."""
        for reach in (0, 1):
            found = [o for near in range(size - reach, size + reach + 1) for o in self._ended.get(near, ())]
            if len(found) >= LEAST_ALIKE:
                return sorted(found)
        return self._all_ended

    @cached_property
    def _by_size(self) -> dict[int, list[int]]:
        return {}

    @cached_property
    def _alike(self) -> dict[int, list[Seen]]:
        """Requests of the present regime by their prompt's power of two."""
        found: dict[int, list[Seen]] = {}
        for one in self.seen.values():
            if one.at >= self.regime_since:
                found.setdefault(one.prompt.bit_length(), []).append(one)
        return found

    @cached_property
    def _ended(self) -> dict[int, list[int]]:
        """Outputs of those that finished last, by their prompt's power of two."""
        found: dict[int, list[int]] = {}
        for prompt, output in self.lengths:
            found.setdefault(prompt.bit_length(), []).append(output)
        return found

    @cached_property
    def _all_ended(self) -> list[int]:
        return sorted(output for _, output in self.lengths)

    def work(self, tokens: float, chunk: int) -> float:
        """Seconds of prefill at the whole device for a prompt with so many uncached tokens."""
        c0, c1, c2 = self.model.costs(Phase.PREFILL, chunk)
        steps = tokens / max(1, chunk)  # chunks are shared: a short prompt costs a part of a step's fixed time
        return c0 * steps + c1 * tokens + c2 * tokens * tokens / 2

    def job(self, one: Seen, at: float, chunk: int) -> Job:
        output = self.output(one)
        return Job(at, self.work(one.prompt * one.uncached, chunk), one.prompt + output // 2, output)

    def backlog(self, o: Observation) -> tuple[list[Job], list[Live]]:
        """What is there now: prompts in work and in the queue, and rows that decode."""
        jobs, live = [], []
        for r in o.running:
            length = self.drawn(r.id, r.prompt_tokens, r.output_tokens, r.max_tokens)
            context = r.prompt_tokens + (r.output_tokens + length) // 2
            if r.uncomputed_tokens and r.first_token_at is None:
                jobs.append(Job(r.received_at, self.work(r.uncomputed_tokens, o.prefill_chunk_tokens), context, length))
            elif r.first_token_at is not None:
                live.append(Live(r.first_token_at, r.output_tokens, max(length, r.output_tokens + 1), context))
        for q in o.queue:
            if q.first_token_at is None:
                tokens = q.uncached_tokens * self.uncached
                length = self.drawn(q.id, q.uncached_tokens)
                work = self.work(tokens, o.prefill_chunk_tokens)
                jobs.append(Job(q.received_at, work, q.uncached_tokens + length // 2, length))
        return jobs, live

    def machine(self, split: Split, o: Observation) -> Machine:
        step, row, position = self.model.costs(Phase.DECODE)
        chunk = o.prefill_chunk_tokens or split.mixed_tokens
        tokens = min(split.mixed_tokens, chunk)
        prompt, token, _ = self.model.costs(Phase.PREFILL, tokens)
        full_prompt, full_token, _ = self.model.costs(Phase.PREFILL, chunk)
        return Machine(
            step=step,
            row=row,
            position=position,
            bend=self.model.bend(Phase.DECODE),
            prefill_speed=self.model.speed(Phase.PREFILL, split),
            decode_speed=self.model.speed(Phase.DECODE, split),
            max_rows=o.max_num_seqs or 1 << 30,
            kv_tokens=o.kv_tokens,
            chunk=self.work(tokens, chunk),
            chunk_tokens=max(1, tokens),
            chunk_base=prompt,
            chunk_rate=token / max(1e-12, full_token + full_prompt / max(1, chunk)),
            mixed=self.model.mixed_factor,
        )


def _draw(lengths: list[int], id: int, done: int) -> int:
    """One of those above `done`, by the id, so that the same request draws alike in every evaluation."""
    first = bisect_right(lengths, done)
    if first < len(lengths):
        return lengths[first + int((id * GOLDEN) % 1.0 * (len(lengths) - first))]
    return done + max(1, done // 2) if done else 64
