"""What a controller may know of a core, as it happens: arrivals, requests, step times, busy time."""

from __future__ import annotations

from pydantic import Field

from semipd_engine.contract.partition import Frozen, Phase, Split


class FinishedRequest(Frozen):
    """One finished request.

    TTFT runs from receipt in api to the first token; TPOT = (last token - first token) / (tokens - 1).
    """

    cursor: int
    id: int = -1
    """As in `Arrival`; -1: it was refused before it had one."""
    received_at: float = 0.0
    finished_at: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_seconds: float | None
    tpot_seconds: float | None
    finish_reason: str
    """stop, length, abort (the client went away), error, or rejected (answered 429 by api)."""


class Arrival(Frozen):
    id: int = -1
    """Counts up from 0 with each core."""
    at: float
    prompt_tokens: int


class QueuedRequest(Frozen):
    """A request that waits for its first step, or again after a preemption."""

    id: int
    received_at: float
    uncached_tokens: int
    """Tokens to compute before it can sample. What the prefix cache will spare is known when it is admitted."""
    output_tokens: int = 0
    """Above 0: it was preempted, and its first token is long out."""
    first_token_at: float | None = None


class RunningRequest(Frozen):
    """A request that holds a place in the batch."""

    id: int
    received_at: float
    prompt_tokens: int
    uncomputed_tokens: int = 0
    """Of its prompt; 0 while it decodes."""
    output_tokens: int = 0
    max_tokens: int = 0
    first_token_at: float | None = None
    last_token_at: float | None = None


class StepTimes(Frozen):
    """Sums over the steps of one kind since this core started; their differences are what a reader uses.

    Kinds are told apart by phase, split in force, batch and context (both rounded down to powers of two), so that the
    sums of a kind lie close to a line in its steps, tokens and context.
    """

    phase: Phase
    split: Split
    batch: int
    """Rows of a decode step, tokens of a prefill step."""
    context: int
    """Positions that attention reads beside the step's own: of all rows together."""
    steps: int
    tokens: int
    context_tokens: int
    """Decode: sum over steps and rows of positions read. Prefill: sum over chunks of tokens x mean position."""
    alone_seconds: float
    shared_seconds: float
    """The part of the steps' time in which the other phase had a step in flight, too."""
    prompts: int = 0
    """Tokens of prompts in a decode step, rounded as `batch`: above 0 in aggregated operation only. `batch` has the
    rows that decode, and `context` what these read."""
    prompt_tokens: int = 0
    prompt_context_tokens: int = 0
    """The prompts' part of `tokens` and of `context_tokens`."""


class Observation(Frozen):
    """All that a controller may know of one core, as it happens: nothing here waits for a request to finish.

    Sums run since the core started; a new `core_id` starts them anew. Times are seconds of CLOCK_MONOTONIC.
    """

    core_id: str
    at: float
    arrivals: tuple[Arrival, ...] = ()
    """Of the last 60 s, oldest first."""
    finished: tuple[FinishedRequest, ...] = ()
    """From the cursor asked for on, oldest first; refused and abandoned requests, too. The last 4,096 are kept."""
    next_cursor: int = 0
    queue: tuple[QueuedRequest, ...] = ()
    """In the order of service."""
    running: tuple[RunningRequest, ...] = ()
    steps: tuple[StepTimes, ...] = ()
    busy_seconds: dict[Phase, float] = Field(default={})
    """Time with a step of the phase in flight, integrated."""
    shared_seconds: float = 0.0
    """Time with steps of both in flight. What is missing of a phase's busy time it had the device alone (L0)."""
    held_back_by_slots_seconds: float = 0.0
    """Time in which the queue's head waited for a place in the batch (`max_num_seqs`) ..."""
    held_back_by_kv_seconds: float = 0.0
    """... or for KV blocks, while prefill had nothing else to do."""
    preemptions: int = 0
    max_num_seqs: int = 0
    kv_tokens: int = 0
    """Positions that the whole KV pool holds."""
    kv_used_tokens: int = 0
    prefill_chunk_tokens: int = 0
