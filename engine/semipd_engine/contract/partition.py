"""A split and its execution: shares of the phases, and the plan that a partitioner makes of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

GREEN_RUNGS = "SEMIPD_GREEN_RUNGS"
"""Of a worker's environment: the percentages below 100 that it holds at the same time, each a stream of a green context
(``mps-green``): ``20,40,60``. The n-th of them is its rung n, and 0 the whole device."""

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
    mixed_tokens: int = Field(default=0, ge=0)
    """Above 0 there is no isolation: prompts are computed in decode's steps, on the whole device, and a step in which
    they take part holds at most so many tokens. Shares do not act then."""

    def __str__(self) -> str:
        return f"mixed/{self.mixed_tokens}" if self.mixed_tokens else f"{self.prefill}/{self.decode}"

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
    RUNGS = "rungs"  # limits that workers hold for life, one each or several; core routes each step (CUDA, MPS)


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
    With `PacingMode.RUNGS` it is, with `rung`, the rung's identity: two limits that are equal in both are one rung, and
    a new pipe directory (a new MPS daemon) makes every rung a new one."""
    rung: int | None = None
    """Its number among the limits that a worker of this environment holds at the same time (`GREEN_RUNGS`); None: the
    worker has this limit alone."""
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
    """No isolation: prompts take part in decode's steps, on the whole device, and prefill's worker rests. A step holds
    at most `split.mixed_tokens`; 0: the engine's `prefill_chunk_tokens`."""

    def limit(self, phase: Phase) -> PhaseLimit:
        return self.prefill if phase is Phase.PREFILL else self.decode
