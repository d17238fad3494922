"""The control protocol of the core: what it is asked on its socket, and what it answers."""

from __future__ import annotations

import signal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from semipd_engine.contract.observation import Observation
from semipd_engine.contract.partition import Frozen, PartitionPlan, Percent, Phase, Split

CONTRACT_VERSION = 1
"""Raised on an incompatible change. A reader accepts its own version and the one before it."""

CONTROL_SOCKET = "control.sock"
"""File name of the core's control socket inside the run directory."""

GATE_SECONDS = 10.0
"""A `Gate` is older than this: it holds no more."""

END_API = signal.SIGUSR1
"""To the launcher: its api hangs, so kill it and start another."""


class SetPartition(Frozen):
    """Put a plan in force: at once, or when the workers that it still lacks are ready (`PacingMode.RUNGS`). Idempotent
    by epoch: an epoch at or below one that was accepted before changes nothing. The `Ack` names the epoch in force."""

    kind: Literal["set_partition"] = "set_partition"
    split_epoch: int = Field(ge=1)
    plan: PartitionPlan


class Promised(Frozen):
    """What a service promises to all its requests; None: nothing of that kind."""

    ttft_seconds: float | None = Field(default=None, gt=0)
    tpot_seconds: float | None = Field(default=None, gt=0)


class Gate(Frozen):
    """Whom api refuses with 429 because the service's targets would be missed. Nothing set: nobody."""

    ttft_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Who is expected to have its first token later than this is refused; 0: nobody is."""
    token_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    square_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """A prompt of n tokens takes prefill n times the one and n times n times the other, as things are now."""
    most_in_work: int = Field(default=0, ge=0)
    """Nobody is let in beside so many sequences that are not over; 0: there is no such bound."""


class GetSnapshot(Frozen):
    """Ask for the engine's state and for the requests that finished after cursor `since`."""

    kind: Literal["snapshot"] = "snapshot"
    since: int = Field(default=0, ge=0)
    promised: Promised | None = None
    """From now on no request's own wish is taken for stricter than these. Said with each question, so that a core that
    was born anew knows it; None: no word, what was said stays."""
    gate: Gate | None = None
    """None: no word. What was said holds for `GATE_SECONDS`: figures that nobody renews refuse nobody."""


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
    """Of a tensor-parallel group, which today has one."""
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
    """The rung that this worker was started under (`PacingMode.RUNGS`); of several that it holds, the one to which the
    phase's steps go while both phases are busy."""
    routed: bool = True
    """Does core send the phase's steps here while both phases are busy? A phase may have other rungs warm."""
    sm_count: int | None = None
    """Streaming multiprocessors that the worker itself sees, on that rung; None on the CPU."""
    lost_rungs: dict[int, str] = Field(default={})
    """Of the rungs that it was to hold, by number (`GREEN_RUNGS`), those that have not proved themselves, and why."""
    start_seconds: dict[str, float] = Field(default={})
    """What its start took, part by part: launch (until its process is there, with its imports), context (of the
    device), attach (to weights and KV pool), kernels (loaded and held against their twins), warm_up, products (held
    against float64), graphs or runner. Empty until it is ready."""
    ending: bool = False
    """It does not end by itself and will be killed: have MPS end it now (`PhaseLimit.terminate_seconds`)."""


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
    """What computes: `reference` (plain torch), `triton`, or the level of the compiled kernels, as `avx512_bf16`."""
    kernels_shortfall: str = ""
    """Why something slower computes than the machine could run, and what helps; empty where nothing is amiss."""


class Refusal(Frozen):
    """A partition whose workers could not be made ready, and why."""

    split_epoch: int
    reason: str
    """CamelCase: PrepareTimeout, SMCountMismatch, RungLost, WeightsMismatch, WrongProducts, CUDAUnavailable ..."""
    message: str


class EngineSnapshot(Frozen):
    kind: Literal["snapshot"] = "snapshot"
    contract_version: int = CONTRACT_VERSION
    core_id: str = ""
    """Of core's present life: another one has other workers, and those of the one before are nobody's."""
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
    leaving: tuple[int, ...] = ()
    """PIDs of workers that no partition keeps any more: they finish the plan in hand, and go."""
    waiting: int = 0
    prefilling: int = 0
    decoding: int = 0
    blocks: BlockCounts = BlockCounts()
    accounting_faults: int = 0
    """Times since this core started that the counts did not add up: a defect. Each time new accounts were begun, and
    every running request computed again."""
    observation: Observation | None = None
    """None before the model is loaded, and from an engine that does not tell."""
    restarts: dict[str, int] = Field(default={})
    """Restarts by process name (prefill, decode, resident) since this core started."""


class Ack(Frozen):
    kind: Literal["ack"] = "ack"
    split_epoch: int = 0


class ControlError(Frozen):
    kind: Literal["error"] = "error"
    message: str


ControlReply = Annotated[EngineSnapshot | Ack | ControlError, Field(discriminator="kind")]
CONTROL_REPLY: TypeAdapter[EngineSnapshot | Ack | ControlError] = TypeAdapter(ControlReply)
