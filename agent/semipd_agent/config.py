"""Configuration: the mounted file, watched by content, and what its settings mean. Knows no HTTP.

Kubernetes updates a mounted ConfigMap by swapping a symlink, so neither inotify on the file nor its inode is reliable;
the file is small, and read once a second.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from semipd_agent.contract import (
    REPORT_VERSION,
    Admission,
    AgentConfig,
    AgentFile,
    Mode,
    PartitionConfig,
    Policy,
    apart,
)
from semipd_agent.partitioner import Partitioner
from semipd_agent.slo.policy import clamp, unlimited
from semipd_engine.contract import Split

log = logging.getLogger(__name__)


class ConfigFileError(Exception):
    """The file cannot be read or is not an `AgentFile`; the message names the file and the field."""


class ConfigFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: bytes | None = None
        self._complaint = ""

    def load(self) -> AgentFile:
        """Read the file. Raises `ConfigFileError`."""
        content = self._read()
        parsed = self._parse(content)
        self._content = content
        return parsed

    def changed(self) -> AgentFile | None:
        """The file, if its content changed since it was last read well. An unreadable file changes nothing."""
        try:
            content = self._read()
            if content == self._content:
                return None
            parsed = self._parse(content)
        except ConfigFileError as e:
            if str(e) != self._complaint:
                log.error("%s; the configuration in force stays", e)
            self._complaint = str(e)
            return None
        self._content, self._complaint = content, ""
        return parsed

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as e:
            raise ConfigFileError(f"{self._path}: {e.strerror}") from e

    def _parse(self, content: bytes) -> AgentFile:
        try:
            return AgentFile.model_validate_json(content)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise ConfigFileError(f"{self._path}: {where}: {first['msg']}") from e


class ConfigRefused(Exception):
    """A configuration that cannot be taken. `code`: StaleGeneration, GenerationConflict or UnsupportedVersion."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def checked(config: AgentConfig) -> AgentConfig:
    """Raises `ConfigRefused` where this agent does not speak its version."""
    if config.version not in (REPORT_VERSION, REPORT_VERSION - 1):
        raise ConfigRefused(
            "UnsupportedVersion", f"configuration version {config.version}; this agent speaks {REPORT_VERSION}"
        )
    return config


def successor(old: AgentConfig, new: AgentConfig) -> AgentConfig:
    """`new`, if it may follow `old`: a generation has one content. Generation 0 is nobody's (a file written by hand),
    so it may change at will. An operator of 0.1.0 knows neither `mixed_batches` nor `admission` and so says nothing of
    them: an upgrade and a roll-back of the operator raise no generation, and what one of both said of this one holds.
    The generations of another object say nothing of those of the one before.

    Raises:
        ConfigRefused: `new` is older, of the same generation with other content, or of a version not spoken here.
    """
    checked(new)
    if apart(old.uid, new.uid):
        return new
    if new.generation < old.generation:
        raise ConfigRefused("StaleGeneration", f"generation {new.generation} is older than {old.generation} in force")
    if new.generation == old.generation > 0:
        old, new = _as_said(old, new), _as_said(new, old)
    if new.generation == old.generation > 0 and new.model_copy(update={"version": old.version}) != old:
        parts = ("slo", "partition", "admission")
        changed = ", ".join(name for name in parts if getattr(new, name) != getattr(old, name))
        raise ConfigRefused(
            "GenerationConflict",
            f"generation {new.generation} is in force with another {changed}: raise the generation",
        )
    return new


def _as_said(config: AgentConfig, other: AgentConfig) -> AgentConfig:
    """With what `other` says where this one may be silent because its author knows no such field."""
    update = dict[str, object]()
    if other.partition.mixed_batches and not config.partition.mixed_batches:
        update["partition"] = config.partition.model_copy(update={"mixed_batches": True})
    if config.admission is Admission.OFF and other.admission is not Admission.OFF:
        update["admission"] = other.admission
    if other.uid and not config.uid:
        update["uid"] = other.uid
    return config.model_copy(update=update) if update else config


def start_of(partition: PartitionConfig) -> Split:
    """The configured split; in Auto, within the bounds."""
    of = partition.split
    split = Split(prefill=of.prefill_percent, decode=of.decode_percent, mixed_tokens=of.mixed_tokens)
    return clamp(split, partition.bounds) if partition.mode is Mode.AUTO else split


def mixing_refused(partition: PartitionConfig, backend: Partitioner) -> str:
    """Why `mixed_batches` has no effect, by name; empty: it has, or nobody asked for it."""
    if not partition.mixed_batches or partition.mode is not Mode.AUTO:
        return ""
    if not backend.mixes:
        why = f"backend {backend.name} does not offer it"
    elif partition.policy == Policy.ALGORITHM1:
        why = "only policy ModelPredictive chooses so"
    elif not unlimited(partition.bounds):
        why = "a share is bounded below 100"
    else:
        return ""
    return f"partition.mixedBatches has no effect: {why}"


def restarts_auto(old: PartitionConfig, new: PartitionConfig) -> bool:
    """Does Auto begin anew (another mode before, or another split to start from)?"""
    return old.mode is not new.mode or old.split != new.split
