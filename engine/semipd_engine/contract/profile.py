"""The file that ``semipd-engine profile`` writes: step times as they were measured, and of what."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from semipd_engine.contract.control import ModelInfo
from semipd_engine.contract.observation import StepTimes
from semipd_engine.contract.partition import Frozen, Phase

MOST_BYTES = 16 << 20


class ProfileError(Exception):
    """A file that is no profile, or one of something else; names the file, the field and the remedy."""


class ProfileKey(Frozen):
    """What step times depend on. Profiles of equal keys may stand in for one another."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    architecture: str
    weight_bytes: int
    """With the architecture this tells models apart; the name of a folder does not."""
    device: str
    dtype: str
    kernels: str
    cpus: int = Field(ge=0)
    """CPUs that the phases shared; 0 on a GPU."""
    cpu_quota: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """CFS quota in CPUs where it is less than `cpus`: steps on all of them are throttled then. None: it is not, or on a
    GPU."""
    sm_count: int | None = None
    """Of the whole GPU, which tells GPUs apart; None on the CPU."""

    @classmethod
    def of(cls, model: ModelInfo, cpus: int, cpu_quota: float | None = None) -> ProfileKey:
        """`cpus`: granted to the engine; `cpu_quota`: where it is less than they are."""
        on_cpu = model.device == "cpu"
        return cls(
            architecture=model.architecture,
            weight_bytes=model.weight_bytes,
            device=model.device,
            dtype=model.dtype,
            kernels=model.kernels,
            cpus=cpus if on_cpu else 0,
            cpu_quota=cpu_quota if on_cpu else None,
            sm_count=model.sm_count,
        )

    def objection(self, other: ProfileKey) -> str:
        """What tells `other`, which is served, from this one, as "field: mine, other's"; empty: nothing does."""
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name}: {mine} was measured, {theirs} is served"
        return ""


class StepProfileFile(Frozen):
    """Sums over the steps of each kind, as an `Observation` has them, from a sweep over sizes and splits."""

    format: Literal["semipd-step-profile"] = "semipd-step-profile"
    version: Literal[1] = 1
    key: ProfileKey
    model: str
    """Its name, for people."""
    machine: str
    """The processor's or the GPU's name: no part of the key, but whoever uses it on another one says so."""
    measured_at: str
    """ISO 8601, UTC."""
    seconds: float = Field(ge=0, allow_inf_nan=False)
    """What the sweep took."""
    steps: tuple[StepTimes, ...] = Field(min_length=1)


def processor() -> str:
    """This machine's, by its name; empty where it does not say it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def read_profile(path: Path) -> StepProfileFile:
    """Raises `ProfileError`."""
    again = "; make it with semipd-engine profile MODEL --out FILE"
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}{again}") from error
    if len(content) > MOST_BYTES:
        raise ProfileError(f"{path}: larger than {MOST_BYTES >> 20} MB, which no profile is{again}")
    try:
        found = StepProfileFile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise ProfileError(f"{path}: {where}: {first['msg']}{again}") from error
    for number, times in enumerate(found.steps):
        seconds = times.alone_seconds + times.shared_seconds
        if times.steps <= 0 or times.tokens <= 0 or not 0 < seconds < float("inf"):
            raise ProfileError(
                f"{path}: steps.{number}: {times.steps} steps, {times.tokens} tokens in {seconds:g} s{again}"
            )
    if missing := set(Phase) - {times.phase for times in found.steps}:
        raise ProfileError(f"{path}: steps: none of {min(missing)}{again}")
    return found
