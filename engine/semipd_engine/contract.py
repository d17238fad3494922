"""What the engine promises to its callers: launch options and the control protocol of the core.

The agent imports this module and nothing else of the engine. It knows no torch, no HTTP and no Kubernetes.

Control protocol: the core listens on the Unix stream socket ``<run_dir>/control.sock`` (mode 0600). Each request is one
line of JSON (`ControlRequest`), each answer one line of JSON (`ControlReply`); a connection may carry any number of
them, in order. All times are seconds of CLOCK_MONOTONIC, which all processes of one machine share.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

CONTRACT_VERSION = 1
"""Raised on an incompatible change. A reader accepts its own version and the one before it."""

CONTROL_SOCKET = "control.sock"
"""File name of the core's control socket inside the run directory."""

Percent = Annotated[int, Field(ge=1, le=100)]


class Frozen(BaseModel):
    """Immutable message. Unknown fields are ignored, so that a newer peer may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Phase(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class Split(Frozen):
    """Shares of the device in percent, one for each phase. The sum may exceed 100 (the phases then compete)."""

    prefill: Percent = 100
    decode: Percent = 100

    def of(self, phase: Phase) -> int:
        return self.prefill if phase is Phase.PREFILL else self.decode


class Enforcement(StrEnum):
    """What stands behind a split on this device."""

    SPATIAL_CAP = "spatial-cap"  # NVIDIA MPS: a ceiling on the SMs
    PACED = "paced"  # CPU: cores of its own, or layer quanta in proportion
    NONE = "none"


class PacingMode(StrEnum):
    UNLIMITED = "unlimited"  # both phases may use every granted CPU at any time
    CORES = "cores"  # while both phases are busy, each one is pinned to cores of its own
    QUANTA = "quanta"  # while both phases are busy, they alternate layer quanta in proportion to their weights
    TURNS = "turns"  # while both are busy, the larger part has CPUs of its own, and the phases take turns for the rest
    RUNGS = "rungs"  # one worker for each rung, its limit fixed by its environment; core routes each step (CUDA, MPS)


class PhaseLimit(Frozen):
    """One phase's limit while both phases are busy. A phase that is alone is never limited (L0)."""

    percent: Percent
    cpus: tuple[int, ...] = ()
    """CPU numbers for `PacingMode.CORES` and `TURNS`; empty otherwise."""
    threads: int = Field(default=1, ge=1)
    """Threads of a step while both phases are busy."""
    weight: int = Field(default=1, ge=1)
    """Stride weight for `PacingMode.QUANTA` and `TURNS`."""
    environment: dict[str, str] = {}
    """Environment of a worker started under this limit (CUDA: MPS variables). Empty on the CPU.
    With `PacingMode.RUNGS` it is the rung's identity: two limits with equal environments are one rung, and a new pipe
    directory (a new MPS daemon) makes every rung a new one."""
    sm_count: int | None = None
    """Streaming multiprocessors that a worker under this limit must see before it is ready; None: not checked."""
    terminate_seconds: float = Field(default=0.0, ge=0)
    """A worker under this limit that must be killed is first shown as `WorkerReport.ending` for so long, in which the
    agent has MPS end it: a signal to a client with kernels in flight may take the server, and so its peers, with it.
    0: it is killed at once."""


class PartitionPlan(Frozen):
    """What the partitioner made of a split: the limits that the engine executes."""

    split: Split
    enforcement: Enforcement
    mode: PacingMode = PacingMode.UNLIMITED
    granted_cpus: tuple[int, ...] = ()
    """CPUs that a phase may use when it is alone. Empty: leave the affinity as it is."""
    threads: int = Field(default=1, ge=1)
    """Threads of a phase that is alone."""
    prefill: PhaseLimit
    decode: PhaseLimit
    whole: PhaseLimit | None = None
    """`PacingMode.RUNGS`: the 100 % rung, whose worker of a phase runs the steps while that phase is alone (L0)."""
    waiting: Phase | None = None
    """`PacingMode.TURNS`: the phase with the smaller part. Its `cpus` are the shared ones, and it runs in its turns
    only. The other one runs all the time: in its turns on all granted CPUs, in between on its own."""
    idle_weight: int = Field(default=0, ge=0)
    """Stride weight of nobody: with x + y < 100 this part of the device stays idle while both phases are busy."""
    aggregated: bool = False
    """No isolation: prompts take part in decode's steps, on the whole device, and prefill's worker rests."""

    def limit(self, phase: Phase) -> PhaseLimit:
        return self.prefill if phase is Phase.PREFILL else self.decode


class SetPartition(Frozen):
    """Put a plan in force: at once, or when the workers that it still lacks are ready (`PacingMode.RUNGS`). Idempotent
    by epoch: an epoch at or below one that was accepted before changes nothing. The `Ack` names the epoch in force."""

    kind: Literal["set_partition"] = "set_partition"
    split_epoch: int = Field(ge=1)
    plan: PartitionPlan


class GetSnapshot(Frozen):
    """Ask for the engine's state and for the requests that finished after cursor `since`."""

    kind: Literal["snapshot"] = "snapshot"
    since: int = Field(default=0, ge=0)


class Drain(Frozen):
    """Stop admitting requests (new ones get 503); running ones finish."""

    kind: Literal["drain"] = "drain"


ControlRequest = Annotated[SetPartition | GetSnapshot | Drain, Field(discriminator="kind")]
CONTROL_REQUEST: TypeAdapter[SetPartition | GetSnapshot | Drain] = TypeAdapter(ControlRequest)


class EngineState(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DEGRADED = "degraded"  # a worker or the resident is being replaced
    DRAINING = "draining"
    FAILED = "failed"


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"


class WorkerReport(Frozen):
    """One phase worker, as it reports itself through shared memory (never an echo of what was asked)."""

    phase: Phase
    pid: int
    rank: int = 0
    generation: int
    """Counts the workers that this phase has had."""
    state: WorkerState
    applied_epoch: int
    """Epoch of the plan that the worker last executed under (also updated while it is idle)."""
    heartbeat_age_seconds: float
    """A live worker, busy or idle, beats at least once a second."""
    busy: bool
    steps: int
    cpu_seconds: float
    percent: Percent = 100
    """The rung that this worker was started under (`PacingMode.RUNGS`)."""
    routed: bool = True
    """Does core send the phase's steps here while both phases are busy? A phase may have other rungs warm."""
    sm_count: int | None = None
    """Streaming multiprocessors that the worker itself sees; None on the CPU."""
    ending: bool = False
    """It does not end by itself and will be killed: have MPS end it now (`PhaseLimit.terminate_seconds`)."""


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
    busy_seconds: dict[Phase, float] = {}
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


class BlockCounts(Frozen):
    """KV blocks by state; free + used + cached + quarantined = total at every tick."""

    total: int = 0
    free: int = 0
    used: int = 0
    cached: int = 0
    quarantined: int = 0


class ModelInfo(Frozen):
    name: str
    architecture: str
    dtype: str
    device: str
    weight_bytes: int
    max_model_len: int
    kv_block_size: int
    kv_bytes: int
    sm_count: int | None = None
    """Streaming multiprocessors of the whole GPU, as a process outside MPS sees them; None on the CPU."""
    kernels: str = ""
    """What computes: `reference` (plain torch), or the level of the compiled kernels, as `avx512_bf16`."""


class Refusal(Frozen):
    """A partition whose workers could not be made ready, and why."""

    split_epoch: int
    reason: str
    """CamelCase: PrepareTimeout, SMCountMismatch, WeightsMismatch, WrongProducts, CUDAUnavailable, WorkerDied ..."""
    message: str


class EngineSnapshot(Frozen):
    kind: Literal["snapshot"] = "snapshot"
    contract_version: int = CONTRACT_VERSION
    monotonic_time: float
    state: EngineState
    reason: str = ""
    """CamelCase cause of FAILED (LoadFailed, OutOfMemory, NotFound, NoGPU, CUDAUnavailable ...); empty otherwise."""
    message: str = ""
    """Why the state is not READY, for people; empty otherwise."""
    load_progress_percent: int | None = None
    model: ModelInfo | None = None
    split_epoch: int = 0
    """Epoch in force in the core; 0 before the first `SetPartition`."""
    split: Split | None = None
    pending_epoch: int = 0
    """Epoch whose cold rungs are being prepared; the epoch in force serves meanwhile. 0: none."""
    refused: Refusal | None = None
    """The latest epoch whose workers could not be made ready, until a later one is in force. If it was pending, the one
    in force before it still is, and sending the same epoch again changes nothing: a new attempt is a new epoch."""
    workers: tuple[WorkerReport, ...] = ()
    waiting: int = 0
    prefilling: int = 0
    decoding: int = 0
    blocks: BlockCounts = BlockCounts()
    accounting_faults: int = 0
    """Times since this core started that the counts did not add up: a defect. Each time new accounts were begun, and
    every running request computed again."""
    observation: Observation | None = None
    """None before the model is loaded, and from an engine that does not tell."""
    restarts: dict[str, int] = {}
    """Restarts by process name (prefill, decode, resident) since this core started."""


class Ack(Frozen):
    kind: Literal["ack"] = "ack"
    split_epoch: int = 0


class ControlError(Frozen):
    kind: Literal["error"] = "error"
    message: str


ControlReply = Annotated[EngineSnapshot | Ack | ControlError, Field(discriminator="kind")]
CONTROL_REPLY: TypeAdapter[EngineSnapshot | Ack | ControlError] = TypeAdapter(ControlReply)


class Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class DType(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class LoadFormat(StrEnum):
    SAFETENSORS = "safetensors"
    DUMMY = "dummy"


class EngineOptions(Frozen):
    """Launch options of ``semipd-engine serve``: one declaration for the flags, the agent and the operator.

    Each field is the flag of the same name (``max_model_len`` is ``--max-model-len``), its description the help text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Path = Field(description="Hugging Face model directory")
    served_model_name: str = Field(default="", description="name in the API; default: the directory's name")
    device: Device = Field(default=Device.AUTO, description="auto takes cuda where a GPU is visible")
    dtype: DType = Field(default=DType.AUTO, description="auto: the checkpoint's, float32 on a CPU without bfloat16")
    load_format: LoadFormat = Field(
        default=LoadFormat.SAFETENSORS,
        description="dummy: random weights made on the device for the shapes of config.json, for measuring",
    )
    host: str = Field(default="127.0.0.1", description="address of the OpenAI API")
    port: int = Field(default=8000, ge=0, le=65535, description="port of the OpenAI API; 0 takes a free one")
    max_model_len: int = Field(default=0, ge=0, description="longest prompt + output, tokens; 0: the model's")
    max_num_seqs: int = Field(default=64, ge=1, description="most requests decoding at once")
    max_queued_requests: int = Field(default=512, ge=1, description="waiting requests above which new ones get 429")
    prefill_chunk_tokens: int = Field(default=256, ge=1, description="most prompt tokens of one prefill step")
    kv_cache_memory: int = Field(default=0, ge=0, description="bytes of the KV pool; 0: a part of the free memory")
    block_size: int = Field(default=16, ge=1, description="tokens in one KV block")
    prefill_share: int = Field(default=100, ge=1, le=100, description="prefill's percent while both phases are busy")
    decode_share: int = Field(default=100, ge=1, le=100, description="decode's percent while both phases are busy")
    threads: int = Field(default=0, ge=0, description="CPU threads of a phase that is alone; 0: the CPUs granted")
    prefix_caching: bool = Field(default=True, description="reuse KV blocks of equal prompt prefixes")
    await_partition: bool = Field(default=False, description="start no worker before the first SetPartition")
    prepare_seconds: float = Field(default=90.0, gt=0, description="time for a worker under a new limit to get ready")
    unified: bool = Field(default=False, description="one process for both phases with chunked prefill, for comparison")
    api_key_file: Path | None = Field(default=None, description="file with the API key that requests must carry")
    drain_seconds: float = Field(default=30.0, ge=0, description="time for running streams to finish after SIGTERM")
    run_dir: Path | None = Field(default=None, description="directory of the sockets (mode 0700); default: a fresh one")
    step_log: Path | None = Field(default=None, description="JSON Lines file with one record for each step (debugging)")

    def arguments(self) -> list[str]:
        """Command-line flags that parse back to these options; defaults are left out."""
        flags: list[str] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.default or value is None:
                continue
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(flag if value else "--no-" + flag[2:])
            else:
                flags += [flag, str(value)]
        return flags
