"""Whom the service's targets let in: who would have its first token too late, or slow everybody's, is refused.

Pure, on times that are handed in (CLOCK_MONOTONIC seconds). What a prompt takes, and how many sequences are too many,
is the agent's word (`ipc.requests.Gate`), a second old; who waits is known here to the moment. Knows no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from semipd_engine.ipc.requests import Gate

ALWAYS = 0.25
"""Part of the TTFT target: who waits no longer than that for its turn is let in, be its own prompt ever so long. Else a
prompt that takes longer than the target on an idle device could be sent again for ever."""
MOST_RETRY_SECONDS = 60
FORGOTTEN = 0.05
"""Of what came of earlier expectations, with each first token."""
PRIOR_SECONDS = 1.0
"""The agent's figures are taken to have been right for so long."""
LEAST, MOST = 0.5, 5.0
"""What waits may be of what these figures say."""
SLOW_RETRY_SECONDS = 5
"""Sequences end one by one, and who comes back sooner finds as many."""


class Backlog:
    """Prompts that have no first token yet. Prefill serves one after the other, so of the first one a part is done: as
    much as there was time for since its turn came.

    What it said of each when it came is held against what came of it: a machine may be busy with what no figure of the
    agent's tells."""

    def __init__(self) -> None:
        self._prompts: dict[int, int] = {}
        """Ticket -> tokens, in the order of arrival."""
        self.tokens = 0
        self._squares = 0
        self._turn_since = 0.0
        """When the first one's turn came."""
        self._tickets = 0
        self._said: dict[int, tuple[float, float]] = {}
        """Ticket -> when it came, and the seconds that the agent's figures gave it."""
        self._expected = self._took = 0.0

    def add(self, tokens: int, now: float, gate: Gate | None = None) -> int:
        """A prompt of so many tokens comes, be it an estimate; returns its ticket. `gate`: what is said of it."""
        if gate is not None and gate.token_seconds > 0:
            self._said[self._tickets + 1] = (now, self._figured(gate, now) + seconds_of(gate, tokens))
        if not self._prompts:
            self._turn_since = now
        self._tickets += 1
        self._count(self._tickets, tokens)
        return self._tickets

    def correct(self, ticket: int, tokens: int) -> None:
        """It has so many in truth."""
        if ticket in self._prompts:
            self._count(ticket, tokens)

    def done(self, ticket: int, now: float, *, came: bool = True) -> None:
        """It has its first token, or (`came` is false) will have none. Safe to call twice."""
        if ticket not in self._prompts:
            return
        since, expected = self._said.pop(ticket, (now, 0.0))
        if came and expected > 0:
            self._expected += expected - FORGOTTEN * self._expected
            self._took += min(now - since, MOST * expected) - FORGOTTEN * self._took
        first = ticket == next(iter(self._prompts))
        self._count(ticket, 0)
        del self._prompts[ticket]
        if first:
            self._turn_since = now

    @property
    def slower(self) -> float:
        """What first tokens took of late, over what was said when their requests came."""
        return min(max((self._took + PRIOR_SECONDS) / (self._expected + PRIOR_SECONDS), LEAST), MOST)

    def seconds(self, gate: Gate, now: float) -> float:
        """Until prefill is through with all of them."""
        return self.slower * self._figured(gate, now)

    def _figured(self, gate: Gate, now: float) -> float:
        """By the agent's figures alone."""
        if not self._prompts:
            return 0.0
        first = seconds_of(gate, next(iter(self._prompts.values())))
        everything = gate.token_seconds * self.tokens + gate.square_seconds * self._squares
        return everything - min(max(0.0, now - self._turn_since), first)

    def _count(self, ticket: int, tokens: int) -> None:
        before = self._prompts.get(ticket, 0)
        self._prompts[ticket] = tokens
        self.tokens += tokens - before
        self._squares += tokens * tokens - before * before

    def __len__(self) -> int:
        return len(self._prompts)


def seconds_of(gate: Gate, tokens: int) -> float:
    """What prefill takes for a prompt of so many tokens, while decode is as busy as it is now."""
    return gate.token_seconds * tokens + gate.square_seconds * tokens * tokens


@dataclass(frozen=True)
class Refusal:
    slo: Literal["ttft", "tpot"]
    """The target that would be missed."""
    message: str
    retry_after: int
    """Seconds."""


def refusal(
    gate: Gate,
    backlog: Backlog,
    prompts: Sequence[int],
    now: float,
    *,
    in_work: int,
    sequences: int = 1,
    wish: float | None = None,
) -> Refusal | None:
    """Why a request with `prompts` of so many tokens is not let in; None: it is.

    `in_work`: sequences that were let in and are not over. `wish`: seconds within which the client wants its first
    token; who asks for less haste than the service promises may wait longer.
    """
    if gate.ttft_seconds > 0:
        target = max(gate.ttft_seconds, wish or 0.0)
        wait = backlog.seconds(gate, now)
        expected = wait + backlog.slower * sum(seconds_of(gate, tokens) for tokens in prompts)
        if expected > target and wait > ALWAYS * target:
            late = min(expected - target, wait)
            return Refusal(
                "ttft",
                f"the first token is expected in {expected:.1f} s, and the target is {target:g} s: {len(backlog)} "
                f"prompts with about {backlog.tokens} tokens wait",
                min(max(1, math.ceil(late)), MOST_RETRY_SECONDS),
            )
    if gate.most_in_work > 0 and in_work and in_work + sequences > gate.most_in_work:
        return Refusal(
            "tpot",
            f"{in_work} requests are in work, and the target of the time per token is kept for {gate.most_in_work}",
            SLOW_RETRY_SECONDS,
        )
    return None
