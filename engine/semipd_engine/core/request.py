"""State of one request inside core. Everything a worker needs is derived from it, so any worker can be replaced.

`WAITING -> PREFILLING -> DECODING -> FINISHED`, and back to WAITING on preemption. State is stored, never derived from
counters: a preempted request with a prefix hit looks like neither a new one nor a running one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import LastSteps
from semipd_engine.core.kv_cache_manager import SequenceBlocks
from semipd_engine.ipc.requests import ENGINE_ERROR
from semipd_engine.ipc.tokens import Sampling, TokenLogprobs


class ConstraintError(Exception):
    """Nothing can follow: the request ends with this message, and a code (`ipc.requests`)."""

    def __init__(self, message: str, code: str = ENGINE_ERROR) -> None:
        super().__init__(message)
        self.code = code


class Constraint(Protocol):
    """A grammar, say. It is asked for the next token only, again and again until it answers."""

    def mask(self, output: Sequence[int]) -> bytes | None:
        """The tokens that may follow `output` (`ipc.steps.Row.mask`). None: not known yet, and a step is sat out.
        Raises `ConstraintError`."""

    def close(self) -> None:
        """The request is gone: what has not begun for it never does."""


class RequestState(Enum):
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    id: int
    """Order of arrival; also the engine-internal name of the request."""
    key: str
    prompt_token_ids: list[int]
    sampling: Sampling
    received_at: float
    patience: float = 0.0
    """Seconds that it may wait, beside others: `Wishes.patience`."""
    gap_wish: float | None = None
    """Seconds between two tokens that it is to have at most where others share its steps (`Wishes.gap`) ..."""
    gap_steps: float = 0.0
    """... but not less than so many steps without prompts take (`Wishes.steps_alone`)."""
    gap_overruled: bool = False
    """That stood in the wish's place."""
    state: RequestState = RequestState.WAITING
    token_ids: list[int] = field(default_factory=list)
    """Prompt and output."""
    num_computed_tokens: int = 0
    """Leading tokens whose K/V is in the pool, by reported steps."""
    blocks: SequenceBlocks = field(default_factory=SequenceBlocks)
    digests: list[bytes] = field(default_factory=list)
    cache_salt: bytes = b""
    """What the first of them begins with."""
    slot: int = 0
    """While it is admitted: its row in the workers' buffers."""
    assignment: int = 0
    """Number of that slot's assignment."""
    constraint: Constraint | None = None
    """What its output must look like."""
    waits_for: tuple[Request, int] | None = None
    """While it waits: whose block it waits for, at which index of its own."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, by reported steps."""
    last_prefill_step: int = 0
    last_decode_step: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    last_chunk_at: float | None = None
    """When a chunk of its prompt was computed last, or it was admitted, be it once more."""
    finish_reason: str | None = None
    failures: int = 0
    """Plans with this request that ended in a worker's death or an exception since it last got further."""
    crashes: int = 0
    """Those of them in which the worker crashed and ran this request alone."""

    turn: tuple[float, int] = field(init=False)
    """Prompts are served in this order. It is settled at the arrival: whoever waits is overtaken by those only that
    come within a bounded time after it."""

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        self.turn = (self.received_at + self.patience, self.id)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens whose K/V is not in the pool yet. One while it decodes: the token sampled last."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def scores_prompt(self) -> bool:
        """Are log-probabilities of its prompt still to be had? They come of computing it: a cached prefix has none."""
        return self.sampling.prompt_logprobs >= 0 and len(self.prompt_logprobs) < len(self.prompt_token_ids) - 1

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def last_steps(self) -> LastSteps:
        return LastSteps(self.last_prefill_step, self.last_decode_step)

    @property
    def history(self) -> list[int]:
        """Tokens that penalties count; empty when nothing needs them."""
        return list(self.token_ids) if self.sampling.needs_history else []

    @property
    def prompt_len(self) -> int:
        return len(self.prompt_token_ids) if self.sampling.needs_history else 0

    def planned(self, phase: Phase, step: int) -> None:
        """Note that steps of `phase` up to `step` may touch this request's blocks."""
        if phase is Phase.PREFILL:
            self.last_prefill_step = step
        else:
            self.last_decode_step = step
