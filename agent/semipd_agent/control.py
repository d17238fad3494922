"""The split's state machine: configuration, snapshots and policy in; the plan to put in force out. Pure, fake clock.

One instance per pod. It does no I/O: `agent.Agent` feeds it a snapshot a second and sends what `pending` returns. It
knows no HTTP, no process and no device beyond its `Partitioner`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from semipd_agent import contract
from semipd_agent.clock import Clock
from semipd_agent.contract import (
    REPORT_VERSION,
    SLO,
    AgentConfig,
    Decision,
    DecisionOutcome,
    DecisionReason,
    Mode,
    PartitionConfig,
    PartitionReason,
    PartitionState,
    Policy,
)
from semipd_agent.decisions import DecisionLog
from semipd_agent.partitioner import Grant, Partitioner, PartitionerUnavailable
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_agent.readback import Intent, Readback, read_back
from semipd_agent.restarts import RestartCounts
from semipd_agent.slo.algorithm1 import Algorithm1
from semipd_agent.slo.policy import Move, SplitPolicy, Verdict, clamp
from semipd_agent.slo.window import Evidence, RequestWindow
from semipd_engine.contract import EngineSnapshot, SetPartition, Split

EPOCHS_KEPT = 64
POLICY_SECONDS = 60.0
"""Finished requests that a policy may look back on."""


class ConfigRefused(Exception):
    """A configuration that cannot be taken. `code` is CamelCase: StaleGeneration or UnsupportedVersion."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SplitController:
    def __init__(self, partitioner_for: Callable[[Mode], Partitioner], config: AgentConfig, clock: Clock) -> None:
        """`partitioner_for` may raise `PartitionerUnavailable`: nothing is enforced then, and the report says so."""
        self._partitioner_for = partitioner_for
        self._clock = clock
        self.log = DecisionLog()
        self.restarts = RestartCounts()
        self.changes = 0
        self.last_change_time: datetime | None = None
        self.snapshot: EngineSnapshot | None = None
        self.verdict = Verdict()
        self._core_epoch = 0
        """Epoch in force at the core when it last answered."""
        self._splits: dict[int, Split] = {}
        self._split_since = clock.monotonic()
        """When the requested split last became another."""
        self.unavailable: PartitionerUnavailable | None = None
        self.config = _checked(config)
        self._use(config.partition.mode)
        self.window = RequestWindow(_kept(config.slo))
        self._policy = self._make_policy()
        self.requested = _start(config.partition)
        self.intent = self._intend(self.requested, 1)
        self.readback = self._judge()

    # ---- configuration ----------------------------------------------------------------------------------------------

    def configure(self, config: AgentConfig) -> None:
        """Take a configuration of this generation or a newer one. Idempotent.

        Raises:
            ConfigRefused: it is older than the one in force, or of a version that this agent does not speak.
        """
        _checked(config)
        if config.generation < self.config.generation:
            raise ConfigRefused(
                "StaleGeneration", f"generation {config.generation} is older than {self.config.generation} in force"
            )
        old, self.config = self.config, config
        if config.partition.mode is not old.partition.mode:
            self._use(config.partition.mode)
        if _kept(config.slo) != self.window.seconds:
            self.window.seconds = _kept(config.slo)
        restart = _restarts_auto(old.partition, config.partition)
        self._take_split(old.partition, config, restart)
        if restart or config.slo != old.slo or config.partition.policy is not old.partition.policy:
            self._policy, self.verdict = self._make_policy(), Verdict()

    def _take_split(self, old: PartitionConfig, config: AgentConfig, restart: bool) -> None:
        """Move to the configured split, or into the bounds where Auto goes on."""
        if config.partition.mode is Mode.AUTO and not restart:
            want, reason = clamp(self.requested, config.partition.bounds), DecisionReason.BOUND_REACHED
        else:
            want, reason = _start(config.partition), DecisionReason.MANUAL_CHANGE
        message = f"generation {config.generation}"
        if config.partition.mode is not old.mode:
            message += f": mode {old.mode} to {config.partition.mode}"
        elif want == self.requested:
            return
        self._move(Move(want, reason, message=message))

    def _use(self, mode: Mode) -> None:
        self.unavailable = None
        try:
            self.partitioner = self._partitioner_for(mode)
            self.partitioner.preflight()
        except PartitionerUnavailable as e:
            self.unavailable = e
            self.partitioner = Unlimited(Grant())

    def _make_policy(self) -> SplitPolicy | None:
        if self.config.partition.mode is not Mode.AUTO or self.config.slo is None or self.unavailable:
            return None
        return Algorithm1(self.config.slo, _start(self.config.partition), since=self._split_since)

    @property
    def policy_in_force(self) -> Policy | None:
        """Algorithm 1 is the only policy there is yet."""
        return Policy.ALGORITHM1 if self.config.partition.mode is Mode.AUTO else None

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def observe(self, snapshot: EngineSnapshot | None) -> None:
        """One tick: take the engine's answer (None: it did not answer) and decide."""
        self.snapshot = snapshot or self.snapshot
        if snapshot is not None:
            self.window.add(snapshot)
            self._follow_core(snapshot)
            self.restarts.follow(snapshot.restarts)
        self.readback = self._judge()
        if self.readback.settled:
            self.log.settle(self.intent.epoch, DecisionOutcome.APPLIED)
        elif self.readback.state is PartitionState.FAILED:
            self.log.settle(self.intent.epoch, DecisionOutcome.FAILED)
        if snapshot is None or self._policy is None or not self.readback.settled:
            return
        now = self._clock.monotonic()
        evidence = Evidence(
            finished=self.window.requests(now, POLICY_SECONDS),
            arrivals=snapshot.arrivals,
            waiting=snapshot.waiting,
            oldest_wait_seconds=snapshot.oldest_wait_seconds,
            held_back=snapshot.waiting > 0 and snapshot.prefilling == 0,
        )
        self.verdict = self._policy.observe(evidence, self.requested, self.config.partition.bounds, now)
        if self.verdict.move is not None:
            self._move(self.verdict.move)

    def pending(self) -> SetPartition | None:
        """What must be sent to the core now; None: it has the epoch in force. Sending twice is harmless."""
        if self.snapshot is None or self.snapshot.split_epoch == self.intent.epoch:
            return None
        return SetPartition(split_epoch=self.intent.epoch, plan=self.partitioner.plan(self.intent.split))

    def _follow_core(self, snapshot: EngineSnapshot) -> None:
        """A core that lost our epoch, or is ahead of it, gets the same split under a higher one."""
        lost = snapshot.split_epoch == 0 and self._core_epoch > 0
        self._core_epoch = snapshot.split_epoch
        if lost or snapshot.split_epoch > self.intent.epoch:
            old = self.intent.epoch
            self.intent = self._intend(self.requested, max(old, snapshot.split_epoch) + 1)
            self.log.carry_over(old, self.intent.epoch)
        if lost:
            self.restarts.core_lost()

    def _judge(self) -> Readback:
        now = self._clock.monotonic()
        result = read_back(self.intent, self._splits, self.snapshot, self.partitioner, now)
        if self.unavailable is not None:
            return Readback(PartitionState.FAILED, PartitionReason.MPS_UNAVAILABLE, str(self.unavailable))
        if result.settled and self.config.partition.mode is Mode.DISABLED:
            return Readback(result.state, PartitionReason.DISABLED, "partitioning is disabled", result.applied)
        return result

    def _move(self, move: Move) -> None:
        before, wall = self.requested, self._clock.wall()
        self.requested = move.to
        self.intent = self._intend(move.to, self.intent.epoch + 1)
        if move.to != before:
            self.changes += 1
            self.last_change_time, self._split_since = wall, self._clock.monotonic()
        self.log.record(
            self.intent.epoch,
            Decision(
                time=wall,
                from_split=wire(before),
                to=wire(move.to),
                reason=move.reason,
                metric=move.metric,
                observed_milliseconds=_milliseconds(move.observed_seconds),
                target_milliseconds=_milliseconds(move.target_seconds),
                message=move.message,
            ),
        )
        self.readback = self._judge()

    def _intend(self, split: Split, epoch: int) -> Intent:
        quantized = self.partitioner.quantize(split)
        self._splits[epoch] = quantized
        while len(self._splits) > EPOCHS_KEPT:
            del self._splits[min(self._splits)]
        return Intent(epoch, quantized, self._clock.monotonic())


def wire(split: Split) -> contract.Split:
    """The engine's split in the agent's contract."""
    return contract.Split(prefill_percent=split.prefill, decode_percent=split.decode)


def _checked(config: AgentConfig) -> AgentConfig:
    if config.version not in (REPORT_VERSION, REPORT_VERSION - 1):
        raise ConfigRefused(
            "UnsupportedVersion", f"configuration version {config.version}; this agent speaks {REPORT_VERSION}"
        )
    return config


def _start(partition: PartitionConfig) -> Split:
    """The configured split; in Auto, within the bounds."""
    split = Split(prefill=partition.split.prefill_percent, decode=partition.split.decode_percent)
    return clamp(split, partition.bounds) if partition.mode is Mode.AUTO else split


def _restarts_auto(old: PartitionConfig, new: PartitionConfig) -> bool:
    """Does Auto begin anew (another mode before, or another split to start from)?"""
    return old.mode is not new.mode or old.split != new.split


def _kept(slo: SLO | None) -> float:
    return max(POLICY_SECONDS, float(slo.window_seconds) if slo else 0.0)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
