"""Messages between core and workers: plans, and what came of them.

Plans are complete: a worker keeps nothing between two of them that it could not do without, so any plan can be given to
another worker. What makes a plan that still runs longer (`Continuation`) carries only what changes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from semipd_engine.contract import Phase
from semipd_engine.ipc.tokens import Sampling, TokenLogprobs


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request's part of a step: compute K/V of `tokens` at positions start .. start + len - 1.

    ``[0, start)`` of the block table is valid for read; the row's own positions are written. A prompt's chunk and a
    decode row are the same thing: the latter has one token, the last one sampled.
    """

    request: int
    tokens: list[int]
    start: int
    block_table: list[int]
    slot: int = 0
    """Which of the workers' rows the request has for as long as it is admitted; below `max_num_seqs`. For a worker that
    keeps something of a row between two plans: plans of today are complete, and none does."""
    assignment: int = 0
    """Number of the slot's assignment: what a worker keeps of a slot is worth nothing under another number."""
    outputs: Literal["none", "last", "all"] = "none"
    """Positions whose logits are wanted. With `last` one token is sampled; with `all` the `targets` are scored, too."""
    sampling: Sampling | None = None
    """Set if and only if a token is sampled, from the last position."""
    targets: list[int] = []
    """With `all`: the tokens that follow the row's first positions; its plan has one step."""
    target_logprobs: int = 0
    """How many of the most likely tokens are wanted beside each target."""
    output_index: int = 0
    """How many output tokens the request already has (not 0 after a preemption)."""
    history: list[int] = []
    """Prompt and output tokens so far, only when penalties need them."""
    prompt_len: int = 0
    """How many of `history` are prompt tokens."""
    mask: bytes | None = None
    """The tokens that may be sampled: bit i of byte i // 8, from the lowest, is token i. Holds for one step. It comes
    from the request's `Constraint`, and nothing of a grammar ever lives in a worker."""


class StepPlan(msgspec.Struct, frozen=True, tag="plan"):
    """One to `max_steps` steps over the same rows, of either phase or of both.

    Step k > 0 feeds each row the token that step k - 1 sampled for it, at the next position: the tables already hold
    blocks for all steps. A row that does not sample ends with the first step, one that does at a stop id or at its
    max_tokens; the one step after a stop id may have begun before it was seen, and writes the row's next position. The
    plan ends when all rows have, or after the step in which core raised the recall number in shared
    memory to `seq` or above. A plan with a masked row has one step.
    """

    seq: int
    """Number of the first step on its queue's clock (`BlockPool` quarantine counts steps); step k has seq + k."""
    max_steps: int
    rows: list[Row]
    rung: int = 0
    """Which of the limits that its worker holds the steps run under: 0, but where one process holds several (a green
    context is a stream of it)."""


class Continuation(msgspec.Struct, frozen=True, tag="continue"):
    """The plan that ends with step `seq` - 1 goes on for `max_steps` more, without a pause and under the same rung.

    Core sends it while that plan runs, before it knows the tokens, so it names none. A worker that ends before that
    step, or has ended by then, runs none of it: it answers `PlanStale` with `seq`, or core knows it by the early end.
    """

    seq: int
    max_steps: int
    rows: list[tuple[int, list[int]]]
    """Who goes on, by request, with the blocks that follow those of its table. The others end with the step before."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish the plan in hand and exit 0."""


class TokenResult(msgspec.Struct, frozen=True, omit_defaults=True):
    request: int
    token: int
    logprobs: TokenLogprobs | None = None


class TargetScores(msgspec.Struct, frozen=True):
    """Of a row with `targets`: their log-probabilities, in their order."""

    request: int
    logprobs: list[TokenLogprobs]


class StepResult(msgspec.Struct, frozen=True, tag="step"):
    """One step is complete: its K/V writes are in memory. `last` also ends the plan."""

    seq: int
    tokens: list[TokenResult]
    last: bool
    seconds: float = 0.0
    """Wall time of the step, pauses of pacing included."""
    finished_at: float = 0.0
    """CLOCK_MONOTONIC seconds; stamped by the worker's loop when it sends the result."""
    scores: list[TargetScores] = []


class StepFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The plan failed with a Python exception; the worker goes on. `request` names the culprit where one is known."""

    seq: int
    error: str
    request: int | None = None


class PlanStale(msgspec.Struct, frozen=True, tag="stale"):
    """The worker does not hold what the plan takes for granted: the plan that it continues is over, say. It has run
    nothing of it, and core plans the same rows anew, in full."""

    seq: int


class WorkerReady(msgspec.Struct, frozen=True, tag="ready"):
    phase: Phase
    pid: int
    generation: int
    sm_count: int | None = None
    """Streaming multiprocessors that the worker sees; None on the CPU. Core judges it."""
    began_at: float = 0.0
    """When its process was there and began with the first of these parts, by CLOCK_MONOTONIC."""
    start_seconds: dict[str, float] = {}
    """Parts of its start, in their order."""
    rungs: dict[int, int] = {}
    """Where it holds several rungs: the SMs of each, by number, as the driver says."""
    lost: dict[int, str] = {}
    """Of those it was to hold, which have failed, and why."""


class WorkerUnfit(msgspec.Struct, frozen=True, tag="unfit"):
    """The worker found out by itself that it cannot serve; it exits."""

    reason: str
    """CamelCase: CUDAUnavailable, AttachFailed, WeightsMismatch, WarmUpFailed, WrongProducts, GreenRungs."""
    message: str


PlanAnswer = StepResult | StepFailed | PlanStale
CoreToWorker = StepPlan | Continuation | Shutdown
WorkerToCore = WorkerReady | WorkerUnfit | PlanAnswer
