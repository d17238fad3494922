"""The split's state machine: configuration, snapshots and policy in; the plan to put in force out. Pure, fake clock.

One instance per pod. It does no I/O: `agent.Agent` feeds it a snapshot a second and sends what `pending` returns. It
knows no HTTP, no process and no device beyond its `Partitioner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from semipd_agent.clock import Clock
from semipd_agent.config import checked, restarts_auto, start_of, successor
from semipd_agent.contract import (
    SLO,
    AgentConfig,
    DecisionOutcome,
    DecisionReason,
    Enforcement,
    Mode,
    PartitionConfig,
    PartitionReason,
    PartitionState,
    Policy,
)
from semipd_agent.decisions import DecisionLog, decision
from semipd_agent.partitioner import Grant, Partitioner, PartitionerUnavailable, Problem
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_agent.pilot import Leeway, Pilot
from semipd_agent.readback import Intent, Readback, read_back
from semipd_agent.restarts import RestartCounts
from semipd_agent.slo.attainment import Attainment
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.policy import Move, clamp, isolated
from semipd_agent.slo.preparation import UNREADY_SECONDS, Preparation, Refusals
from semipd_agent.slo.profiles import Profiles
from semipd_agent.slo.step_model import ShareLaw
from semipd_agent.tasks import Faults
from semipd_engine.contract import EngineSnapshot, Promised, SetPartition, Split

EPOCHS_KEPT = 64
ANEW_SECONDS = 60.0
"""Between two attempts at a split that the engine could not prepare and that nothing else takes the place of."""


class SplitController:
    def __init__(
        self,
        partitioner_for: Callable[[Mode], Partitioner],
        config: AgentConfig,
        clock: Clock,
        profiles: Profiles = Profiles(),
    ) -> None:
        """`partitioner_for` may raise `PartitionerUnavailable`: nothing is enforced then, and the report says so."""
        self._partitioner_for = partitioner_for
        self._clock = clock
        self.log = DecisionLog()
        self.faults = Faults(clock)
        self.restarts = RestartCounts()
        self.changes = 0
        self.last_change_time: datetime | None = None
        self.snapshot: EngineSnapshot | None = None
        self.pilot = Pilot(self.faults, self.log, config.slo, profiles)
        self._core_epoch = 0
        """Epoch in force at the core when it last answered."""
        self._splits: dict[int, Split] = {}
        self._refusals = Refusals()
        self._split_since = clock.monotonic()
        """When the requested split last became another."""
        self.unavailable: Problem | None = None
        """Why nothing stands behind the split that is asked for; None: something does, or will."""
        self.partitioner: Partitioner = Unlimited(Grant())
        self.config = checked(config)
        self._use(config.partition.mode)
        self._relearn()
        self._repilot()
        self.requested = self._start()
        self._incarnation = self.partitioner.incarnation
        """Of the partitioner, when the epoch in force was made."""
        self.intent = self._intend(self.requested, 1)
        self.readback = self._judge()

    # ---- configuration ----------------------------------------------------------------------------------------------

    def configure(self, config: AgentConfig) -> None:
        """Take a configuration of this generation or a newer one. Idempotent. Raises `ConfigRefused`."""
        old, self.config = self.config, successor(self.config, config)
        if config.partition.mode is not old.partition.mode:
            self._use(config.partition.mode)
            self._incarnation = self.partitioner.incarnation
        self.pilot.promises(config.slo)
        restart = restarts_auto(old.partition, config.partition)
        self._take_split(old.partition, config, restart)
        if config.slo != old.slo:
            self.log.targets_changed()
        others = ("policy", "mixed_batches")
        if (
            restart
            or config.slo != old.slo
            or any(getattr(config.partition, n) != getattr(old.partition, n) for n in others)
        ):
            self._repilot()

    def _take_split(self, old: PartitionConfig, config: AgentConfig, restart: bool) -> None:
        """Move to the configured split, or into the bounds where Auto goes on."""
        if config.partition.mode is Mode.AUTO and not restart:
            here = self.requested if self._mixes else isolated(self.requested)
            want, reason = clamp(here, config.partition.bounds), DecisionReason.BOUND_REACHED
        else:
            want, reason = self._start(), DecisionReason.MANUAL_CHANGE
        message = f"generation {config.generation}"
        if config.partition.mode is not old.mode:
            message += f": mode {old.mode} to {config.partition.mode}"
        elif want == self.requested:
            return
        self._move(Move(want, reason, message=message))

    def _use(self, mode: Mode) -> None:
        """Where the backend refuses, the one before stays: an engine that runs is not stopped for it."""
        self.unavailable = None
        try:
            partitioner = self._partitioner_for(mode)
            partitioner.preflight()
            other = partitioner.enforcement is not self.partitioner.enforcement
            self.partitioner = partitioner
            if other:
                self._relearn()
        except PartitionerUnavailable as e:
            self.unavailable = Problem(e.reason, str(e))

    def retry(self) -> None:
        """Ask the backend that refused once more: somebody may have done what its message says."""
        if self.unavailable is None:
            return
        self._use(self.config.partition.mode)
        if self.unavailable is None:
            self._repilot()
            self._renew(self.intent.epoch + 1)

    @property
    def promised(self) -> Promised:
        """The targets in force, which bound what single requests wish for."""
        slo = self.config.slo or SLO()
        ttft, tpot = slo.ttft_milliseconds, slo.tpot_milliseconds
        return Promised(ttft_seconds=ttft and ttft / 1000, tpot_seconds=tpot and tpot / 1000)

    @property
    def may_start(self) -> bool:
        """Something stands behind the split, so the engine may start."""
        return self.unavailable is None and self.partitioner.ready

    @property
    def obstacle(self) -> Problem | None:
        """Why the engine may not start; None: it may, or the partitioner is on its way."""
        return self.unavailable or (None if self.partitioner.ready else self.partitioner.health())

    @property
    def condemned(self) -> bool:
        """The device itself is at fault: nothing more can be served on it."""
        problem = self.partitioner.health()
        return problem is not None and problem.reason is PartitionReason.GPU_UNHEALTHY

    def _repilot(self) -> None:
        """The configured policy begins anew, where there is anything to decide: in one process for both phases a move
        would change nothing."""
        idle = self.config.partition.mode is not Mode.AUTO or bool(self.unavailable)
        policy = None if idle or self.partitioner.enforcement is Enforcement.NONE else self.config.partition.policy
        home, grid = self._start(), Grid(self.partitioner.rungs)
        self.pilot.follow(policy, self.config.slo, grid, home, since=self._split_since, mixes=self._mixes)

    def _relearn(self) -> None:
        """A share slows steps by another law than before."""
        spatial = self.partitioner.enforcement is Enforcement.SPATIAL_CAP
        self.pilot.runs_on(ShareLaw.SPATIAL if spatial else ShareLaw.PACED)

    def _start(self) -> Split:
        """The configured split, or the one to start from, as far as the backend has such a thing."""
        start = start_of(self.config.partition)
        return start if self.partitioner.mixes else isolated(start)

    @property
    def _mixes(self) -> bool:
        """May Auto choose to have no isolation?"""
        allowed = self.config.partition.mixed_batches and self.config.partition.policy != Policy.ALGORITHM1
        return allowed and self.partitioner.mixes

    @property
    def policy_in_force(self) -> Policy | None:
        """None: nothing moves the split (not in Auto, no SLO, or nothing is enforced)."""
        return self.pilot.policy_in_force

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def observe(self, snapshot: EngineSnapshot | None) -> None:
        """One tick: take the engine's answer (None: it did not answer) and decide."""
        self.snapshot = snapshot or self.snapshot
        if snapshot is not None:
            self.pilot.serves(snapshot.model)
            if snapshot.observation is not None:
                self.pilot.take(snapshot.observation, self.config.partition.bounds)
            self.partitioner.follow(snapshot)
            self._follow_core(snapshot)
            self.restarts.follow(snapshot.restarts)
        if self.partitioner.incarnation != self._incarnation:
            self._renew(self.intent.epoch + 1)
        self.readback = self._judge()
        if self.readback.settled:
            self.log.settle(self.intent.epoch, DecisionOutcome.APPLIED, self._clock.monotonic())
            self._refusals.disproved(self.intent.split)
        elif self.readback.state is PartitionState.FAILED:
            self.log.settle(self.intent.epoch, DecisionOutcome.FAILED)
        if snapshot is not None and self.readback.reason is PartitionReason.PREPARATION_FAILED:
            self._answer_refusal(snapshot)
        slo = self.config.slo
        if slo is None:
            self.pilot.rest()
        if snapshot is None or snapshot.observation is None or slo is None:
            return
        verdict = self.pilot.decided(snapshot.observation, self._leeway(slo, snapshot), self._clock.monotonic())
        if verdict is not None and verdict.move is not None:
            self._move(verdict.move)

    def _leeway(self, slo: SLO, snapshot: EngineSnapshot) -> Leeway:
        bounds, grid = self.config.partition.bounds, Grid(self.partitioner.rungs)
        unready = self._refusals.of_late(self._clock.monotonic())
        first = Preparation.told(snapshot.workers, unready) if self.partitioner.prepares else None
        settled, admission = self.readback.settled, self.config.admission
        return Leeway(slo, self.requested, bounds, grid, self._mixes, settled, admission, first)

    def attained(self, slo: SLO, now: float) -> Attainment:
        """Of the SLO's window, and of what is there now."""
        return self.pilot.attained(slo, self.snapshot.observation if self.snapshot else None, now)

    def pending(self) -> SetPartition | None:
        """What must be sent to the core now; None: it has the epoch, in force or in work. Sending twice is harmless."""
        if self.snapshot is None or not self.partitioner.ready:
            return None
        if self.intent.epoch in (self.snapshot.split_epoch, self.snapshot.pending_epoch):
            return None
        return SetPartition(split_epoch=self.intent.epoch, plan=self.partitioner.plan(self.intent.split))

    def _follow_core(self, snapshot: EngineSnapshot) -> None:
        """A core that lost our epoch, or is ahead of it, gets the same split under a higher one."""
        lost = snapshot.split_epoch == 0 and self._core_epoch > 0
        self._core_epoch = snapshot.split_epoch
        if lost or snapshot.split_epoch > self.intent.epoch:
            self._renew(max(self.intent.epoch, snapshot.split_epoch) + 1)
        if lost:
            self.restarts.core_lost()

    def _answer_refusal(self, snapshot: EngineSnapshot) -> None:
        """Auto goes back to the split in force, as far as the bounds have it, and leaves the rungs that were refused
        alone for a while. A configured split, and one that the bounds leave no other for, is tried anew later."""
        now, stays = self._clock.monotonic(), self.readback.applied
        back = self.intent.split
        if self.pilot.policy is not None and stays is not None:
            self._refusals.note(Preparation.told(snapshot.workers).cold(self.intent.split), now)
            back = clamp(self.partitioner.quantize(stays), self.config.partition.bounds, Grid(self.partitioner.rungs))
        if back != self.intent.split:
            said = f"{self.readback.message}; Auto does not choose it again within {UNREADY_SECONDS / 60:.0f} min"
            self._move(Move(back, DecisionReason.ROLLBACK, message=said))
        elif now - self.intent.since >= ANEW_SECONDS:
            self._renew(self.intent.epoch + 1)

    def _renew(self, epoch: int) -> None:
        """The same split under another epoch."""
        old = self.intent.epoch
        self._incarnation = self.partitioner.incarnation
        self.intent = self._intend(self.requested, epoch)
        self.log.carry_over(old, epoch)

    def _judge(self) -> Readback:
        now = self._clock.monotonic()
        if self.unavailable is not None:
            return Readback(PartitionState.FAILED, self.unavailable.reason, self.unavailable.message)
        result = read_back(self.intent, self._splits, self.snapshot, self.partitioner, now)
        if result.state is PartitionState.ADJUSTING and self._incarnation > 1 and (lost := self.partitioner.lost):
            result = replace(result, message=f"after {lost.reason}; {result.message}")
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
        self.log.record(self.intent.epoch, decision(before, move, wall))
        self.readback = self._judge()

    def _intend(self, split: Split, epoch: int) -> Intent:
        quantized = self.partitioner.quantize(split)
        if self.config.partition.mode is Mode.AUTO and self.partitioner.rungs:
            quantized = clamp(quantized, self.config.partition.bounds, Grid(self.partitioner.rungs))
        self._splits[epoch] = quantized
        while len(self._splits) > EPOCHS_KEPT:
            del self._splits[min(self._splits)]
        return Intent(epoch, quantized, self._clock.monotonic())
