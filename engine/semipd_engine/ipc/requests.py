"""Messages between api and core: sequences to generate, their tokens, and what core says of itself."""

from __future__ import annotations

import msgspec

from semipd_engine.ipc.tokens import NO_LOGPROBS, Sampling, TokenLogprobs


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
    ended: bool = False
    """Its answer is complete: a stop string came, of which core knows nothing. Else nobody wants the rest."""


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """A request was answered with 429: core never sees it, but whoever controls the load must."""

    received_at: float
    prompt_tokens: int
    """Estimated: it was refused before it was tokenised."""


ENGINE_ERROR = "engine_error"
WORKER_CRASHED = "worker_crashed"
GRAMMAR_LIMIT = "grammar_limit"
"""A client's grammar lets nothing follow, or takes the parser to its limits."""
NOT_READY, DRAINING = "not_ready", "draining"
"""Core takes no requests; api had not heard of it when it sent this one."""


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


class Gate(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whom api refuses for the service's targets (`contract.Gate`). All zero: nobody."""

    ttft_seconds: float = 0.0
    token_seconds: float = 0.0
    square_seconds: float = 0.0
    most_in_work: int = 0


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
    gate: Gate = Gate()


ApiToCore = AddRequest | AbortRequest | Rejected
CoreToApi = Outputs | CoreState
