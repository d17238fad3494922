"""What a configuration means: whether this agent takes it, where Auto starts, what makes it start anew. Pure."""

from __future__ import annotations

from semipd_agent.contract import REPORT_VERSION, AgentConfig, Mode, PartitionConfig
from semipd_agent.slo.policy import clamp
from semipd_engine.contract import Split


class ConfigRefused(Exception):
    """A configuration that cannot be taken. `code` is CamelCase: StaleGeneration or UnsupportedVersion."""

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


def start_of(partition: PartitionConfig) -> Split:
    """The configured split; in Auto, within the bounds."""
    split = Split(prefill=partition.split.prefill_percent, decode=partition.split.decode_percent)
    return clamp(split, partition.bounds) if partition.mode is Mode.AUTO else split


def restarts_auto(old: PartitionConfig, new: PartitionConfig) -> bool:
    """Does Auto begin anew (another mode before, or another split to start from)?"""
    return old.mode is not new.mode or old.split != new.split
