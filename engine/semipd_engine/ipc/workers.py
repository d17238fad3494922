"""Messages between core and the resident: workers that are started and end, and a model that is loaded."""

from __future__ import annotations

import msgspec

from semipd_engine.contract import Phase

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
    terminate_seconds: float = 0.0
    """If core ends: time for the agent to have MPS end a worker that does not leave, before the resident kills it."""


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
    """Which of `kernels` run: `reference`, `triton`, or a CPU's level."""
    kernels_shortfall: str = ""
    """Why no faster ones do, and what helps."""
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
