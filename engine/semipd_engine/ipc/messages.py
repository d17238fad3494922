"""Messages between the engine's own processes, msgpack-encoded (`msgspec`), one message a datagram or frame.

Torch-free: core, api and workers all import it. Plans are complete: a worker keeps nothing between two of them that it
could not do without, so any plan can be given to another worker. Token and block ids are plain ints; request ids inside
the engine are ints given by core.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from semipd_engine.contract import Phase


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one token of a request is chosen. Resolved by api: the seed is always set, the stop ids are complete."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int = -1
    """-1: none; k >= 0: the chosen token's logprob and the k most likely ones."""
    prompt_logprobs: int = -1
    """The same for each token of the prompt but the first."""
    stop_token_ids: tuple[int, ...] = ()
    """End-of-sequence ids (unless ignore_eos) and the request's own."""
    min_tokens: int = 0
    """Stop ids cannot be sampled before this many output tokens."""
    max_tokens: int = 16

    @property
    def needs_history(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


# ---- api <-> core ------------------------------------------------------------------------------------------------


class AddRequest(msgspec.Struct, frozen=True, tag="add"):
    """One sequence to generate (n > 1 is n of these). `key` is api's own; core answers with the same key."""

    key: str
    prompt_token_ids: list[int]
    sampling: Sampling
    received_at: float
    """CLOCK_MONOTONIC seconds at receipt in api."""
    cache_salt: str = ""
    """Prefixes are shared among requests of the same salt only."""
    priority: int = 0
    """The smaller, the sooner (vLLM's)."""
    ttft_target: float | None = None
    """Seconds from receipt within which the client wants the first token; None: it has not said."""
    tpot_target: float | None = None
    """Seconds for a token after the first, on average, that the client wants at most; None: it has not said."""
    grammar: str = ""
    """What the output must look like, as llguidance has it; empty: anything. It ends with an end-of-sequence id."""


class AbortRequest(msgspec.Struct, frozen=True, tag="abort"):
    key: str


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """A request was answered with 429: core never sees it, but whoever controls the load must."""

    received_at: float
    prompt_tokens: int
    """Estimated: it was refused before it was tokenised."""


class TokenLogprobs(msgspec.Struct, frozen=True):
    logprob: float
    top: list[tuple[int, float]] = []
    """(token id, logprob), most likely first; length as asked."""
    rank: int = 0
    """1 for the most likely token; 0: unknown."""


_encoder = msgspec.msgpack.Encoder()
_entries = msgspec.msgpack.Decoder(list[msgspec.Raw])
_entry = msgspec.msgpack.Decoder(TokenLogprobs)
NO_LOGPROBS = msgspec.Raw()
"""Nothing that could be encoded: messages leave it out, being the field's default itself."""


def pack_logprobs(logprobs: list[TokenLogprobs]) -> msgspec.Raw:
    """As a message carries those of a prompt: they may be many, and whoever has the time decodes them."""
    return msgspec.Raw(_encoder.encode(logprobs)) if logprobs else NO_LOGPROBS


def unpack_logprobs(packed: msgspec.Raw) -> list[TokenLogprobs]:
    """One by one: in one go they hold all threads up."""
    return [_entry.decode(each) for each in _entries.decode(packed)] if packed else []


ENGINE_ERROR = "engine_error"
WORKER_CRASHED = "worker_crashed"


class RequestOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """New tokens of one request. The last one carries `finish_reason` (stop, length, abort) or `error`."""

    key: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    finish_reason: str | None = None
    error: str | None = None
    error_code: str = ENGINE_ERROR
    """With `error`: the code that the client sees."""
    first_token_at: float | None = None
    """CLOCK_MONOTONIC seconds; set once, with the first token."""
    scheduled_at: float | None = None
    """When the first prefill step was planned; set with the first token."""
    cached_tokens: int = 0
    preemptions: int = 0
    prompt_logprobs: msgspec.Raw = NO_LOGPROBS
    """Of the prompt's tokens from the second on (`unpack_logprobs`), where asked for; set with the first token."""


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    outputs: list[RequestOutput]


class CoreState(msgspec.Struct, frozen=True, tag="state"):
    """Sent by core on connect, and on every change; and once a second with the gauges."""

    ready: bool
    """What /ready answers: core lives and each phase has a verified worker; outages under 2 s are hidden."""
    state: str
    """A `contract.EngineState`."""
    message: str = ""
    admitting: bool = False
    """New requests are taken (perhaps queued). While false api answers 503; it may differ from `ready`: after SIGTERM
    /ready fails at once and requests are admitted for 5 s more, and a dead resident is survived with requests queued.
    """
    waiting_tokens: int = 0
    model_name: str = ""
    max_model_len: int = 0
    waiting: int = 0
    prefilling: int = 0
    decoding: int = 0
    longest_wait_seconds: float = 0.0
    """Of those that have no first token yet, since their receipt ..."""
    longest_gap_seconds: float = 0.0
    """... and of those that decode, since their last token."""
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_quarantined: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    preemptions: int = 0
    accounting_faults: int = 0
    prefill_percent: int = 100
    decode_percent: int = 100
    splits_applied: int = 0
    kernels: str = ""
    max_stall_seconds: float = 0.0
    """The bound on a stream's wait for a step with prompts in it; 0: there is none. Beyond it ..."""
    stalls_prefill: int = 0
    """... times that an admitted prompt had no step for so long ..."""
    stalls_decode: int = 0
    """... and that a stream had no token."""
    wishes_ignored_ttft: int = 0
    wishes_ignored_tpot: int = 0
    """Wishes of clients in the place of which something else stood."""


ApiToCore = AddRequest | AbortRequest | Rejected
CoreToApi = Outputs | CoreState


# ---- core <-> worker ---------------------------------------------------------------------------------------------


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
    max_tokens. The plan ends when all rows have, or after the step in which core raised the recall number in shared
    memory to `seq` or above. A plan with a masked row has one step.
    """

    seq: int
    """Number of the first step on its queue's clock (`BlockPool` quarantine counts steps); step k has seq + k."""
    max_steps: int
    rows: list[Row]
    rung: int = 0
    """Which of the limits that its worker holds the steps run under: 0, but where one process holds several (a green
    context is a stream of it)."""


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
    """The worker does not hold what the plan takes for granted of a slot (another assignment): it has run nothing.

    Core plans the same rows anew. It is what lets a channel carry only what changed, without a worker ever holding
    what cannot be rebuilt: no channel does so yet.
    """

    seq: int


class WorkerReady(msgspec.Struct, frozen=True, tag="ready"):
    phase: Phase
    pid: int
    generation: int
    sm_count: int | None = None
    """Streaming multiprocessors that the worker sees; None on the CPU. Core judges it."""


class WorkerUnfit(msgspec.Struct, frozen=True, tag="unfit"):
    """The worker found out by itself that it cannot serve; it exits."""

    reason: str
    """CamelCase: CUDAUnavailable, AttachFailed, WeightsMismatch, WarmUpFailed, WrongProducts."""
    message: str


PlanAnswer = StepResult | StepFailed | PlanStale
CoreToWorker = StepPlan | Shutdown
WorkerToCore = WorkerReady | WorkerUnfit | PlanAnswer


# ---- core <-> resident -------------------------------------------------------------------------------------------

RESIDENT_SOCKET = "resident.sock"
"""File name inside the run directory."""


class SpawnWorker(msgspec.Struct, frozen=True, tag="spawn"):
    """Start a worker. The answer (`Spawned`) carries the worker's channel and its pidfd as file descriptors."""

    phase: Phase
    generation: int
    seat: int = 0
    """Which of the phase's records in the pacing page the worker keeps."""
    percent: int | None = None
    """For the process title; None where a worker's limit may change during its life."""
    environment: dict[str, str] = {}
    """Put over the resident's own, before the device is touched."""


class Spawned(msgspec.Struct, frozen=True, tag="spawned"):
    phase: Phase
    generation: int
    pid: int


class SpawnFailed(msgspec.Struct, frozen=True, tag="spawn_failed"):
    """The worker could not be started (no memory, no process left to have): the resident goes on."""

    phase: Phase
    generation: int
    message: str


class WorkerEnded(msgspec.Struct, frozen=True, tag="ended"):
    """The resident has reaped a worker: nothing that the worker started can touch the pool any more."""

    pid: int
    status: int
    """Exit code, or minus the number of the signal that ended it."""


class ResidentHello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of the resident once the weights are loaded; carries the page's descriptor, then the KV pool's."""

    pid: int
    num_blocks: int
    block_size: int
    kv_bytes: int
    weight_bytes: int
    architecture: str
    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    kernels: str = ""
    """Which of `kernels` run: `reference`, or a CPU's level."""
    kv_descriptor: bool = True
    """False where the KV pool is device memory, which no descriptor stands for."""
    sm_count: int | None = None
    """Streaming multiprocessors of the whole GPU; None on the CPU."""


class ResidentLoading(msgspec.Struct, frozen=True, tag="loading"):
    percent: int


class ResidentFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """Loading cannot succeed (bad model, too little memory): the reason goes to the API and to the status."""

    reason: str
    """CamelCase: LoadFailed, OutOfMemory, NotFound, NoGPU."""
    message: str


CoreToResident = SpawnWorker
ResidentToCore = ResidentHello | ResidentLoading | ResidentFailed | Spawned | SpawnFailed | WorkerEnded
