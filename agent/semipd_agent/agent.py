"""The running agent: joins engine, controller, configuration file and supervisor in one loop. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from semipd_agent import report
from semipd_agent.api_probe import ApiProbe
from semipd_agent.clock import Clock
from semipd_agent.config import ConfigFile, ConfigRefused
from semipd_agent.contract import AgentConfig, AgentFile, Health, Identity, PartitionState, StatusReport
from semipd_agent.control import SplitController
from semipd_agent.engine_client import CoreGone, EngineClient, EngineUnreachable
from semipd_agent.engine_report import LauncherState
from semipd_agent.memory_limit import MemoryLimit
from semipd_agent.partitioner import Partitioner, Problem
from semipd_agent.readiness import POLL_SECONDS, ReadyGate
from semipd_agent.reaper import Reaper
from semipd_agent.supervisor import Supervisor
from semipd_agent.tasks import keep_going
from semipd_engine.contract import EngineSnapshot, no_api_key

log = logging.getLogger(__name__)

MOVING_POLL_SECONDS = 0.2
"""Period while a split is on the move, so that its proof is not a tick late."""
RETRY_SECONDS = 30.0
"""Between two looks at a machine whose preflight refused."""
LAST_LOOK_SECONDS = 1.0
"""SIGTERM reaches an engine that does not answer so much later."""
DRAIN_SLACK = 20.0
"""Seconds beyond the engine's own drain time before its group is killed: 5 s of late admissions, and the exits."""


class Agent:
    """Implements `api.Service`."""

    def __init__(
        self,
        *,
        controller: SplitController,
        client: EngineClient,
        supervisor: Supervisor,
        reaper: Reaper,
        config_file: ConfigFile | None,
        tokens: tuple[str, ...],
        identity: Identity,
        clock: Clock,
        drain_seconds: float,
        api: ApiProbe,
        memory: MemoryLimit,
        api_key_file: Path | None = None,
    ) -> None:
        self.controller = controller
        self._client = client
        self._supervisor = supervisor
        self._reaper = reaper
        self._file = config_file
        self._tokens = tokens
        self._identity = identity
        self._clock = clock
        self._faults = controller.faults
        self._drain_seconds = drain_seconds
        self._gate = ReadyGate()
        self._api, self._memory, self._api_key_file = api, memory, api_key_file
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurrying: asyncio.Task[None] | None = None
        self._kept: dict[Partitioner, asyncio.Task[None]] = {}
        """Partitioners whose mechanism is being kept alive. One that is not in force at present stays until the end."""
        self._obstacle: Problem | None = None
        self._tried = clock.monotonic()

    # ---- api.Service ------------------------------------------------------------------------------------------------

    def report(self) -> StatusReport:
        launcher = LauncherState(
            started=self._supervisor.started,
            running=self._supervisor.running,
            crash_loop=self._supervisor.crash_loop,
            refused=self._supervisor.refused,
            restarts=self._supervisor.restarts,
            message=self._supervisor.message,
        )
        now, wall = self._clock.monotonic(), self._clock.wall()
        return report.build(
            self.controller,
            launcher,
            self._identity,
            ready=self.ready(),
            now=now,
            wall=wall,
            served=self._gate.served,
            api_problem=self._api.problem(),
            memory_problem=self._memory.problem(),
            key_problem=no_api_key(self._api_key_file),
        )

    def configure(self, config: AgentConfig) -> None:
        self.controller.configure(config)
        self._follow_partitioner()
        self._wake.set()  # the split is sent at once, not with the next tick

    def ready(self) -> bool:
        return self._gate.ready(self._clock.monotonic()) and not self.controller.condemned

    def health(self) -> Health:
        return Health(pod_uid=self._identity.pod_uid, observed_at=self._clock.wall())

    def recording(self) -> Iterator[bytes]:
        return self.controller.pilot.recorder.pieces()

    def token_digests(self) -> tuple[str, ...]:
        return self._tokens

    # ---- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until `terminate`; returns when the engine has drained and is gone."""
        loop = asyncio.create_task(keep_going("control", self._loop, self._faults), name="control")
        api = asyncio.create_task(keep_going("api probe", self._api.run, self._faults), name="api probe")
        await self._stop.wait()
        with self._faults.contained("last look"):
            await self._last_look()
        await self._supervisor.stop(self._drain_seconds + DRAIN_SLACK, self._evict)
        loop.cancel()
        api.cancel()
        await self._client.close()
        for partitioner, task in self._kept.items():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await partitioner.close()

    async def _last_look(self) -> None:
        """An engine that has become ready since the last tick has served: its users saw it first. Once it drains,
        nobody can find that out."""
        if self._gate.served:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_LOOK_SECONDS):
                snapshot, _ = await asyncio.gather(self._ask(), self._api.ask())
                self._gate.update(snapshot, self._clock.monotonic(), api_answers=self._api.answers)

    async def _evict(self) -> None:
        await asyncio.gather(*(partitioner.evict() for partitioner in self._kept))

    async def _hurry(self) -> None:
        try:
            await self._evict()
        finally:
            self._supervisor.hurry()

    def terminate(self) -> None:
        """SIGTERM: not ready at once, then the engine drains. The second one hurries it."""
        if self._stop.is_set() and self._hurrying is None:
            self._hurrying = asyncio.create_task(self._hurry(), name="hurry")
        self._gate.close()
        self._stop.set()

    def _follow_partitioner(self) -> None:
        """Keep the partitioner in force alive, and start the engine once it stands behind the split.

        A GPU without MPS serves only with partitioning disabled; an engine that already runs is left alone.
        """
        controller = self.controller
        if controller.unavailable is None and controller.partitioner not in self._kept:
            run = keep_going("partitioner", controller.partitioner.run, self._faults)
            self._kept[controller.partitioner] = asyncio.create_task(run, name="partitioner")
        if controller.may_start:
            self._supervisor.start()
        obstacle = controller.obstacle
        if obstacle not in (None, self._obstacle) and not self._supervisor.started:
            log.error("the engine is not started: %s: %s", obstacle.reason, obstacle.message)
        self._obstacle = obstacle

    async def _loop(self) -> None:
        while True:
            started = self._clock.monotonic()
            for part, step in (
                ("reaper", self._reaper.reap),
                ("configuration", self._follow_file),
                ("preflight", self._retry),
                ("partitioner", self._follow_partitioner),
                ("api", self._end_hung_api),
            ):
                with self._faults.contained(part):
                    step()
            with self._faults.contained("control"):
                await self._tick()
            moving = self.controller.readback.state is PartitionState.ADJUSTING
            rest = (MOVING_POLL_SECONDS if moving else POLL_SECONDS) - (self._clock.monotonic() - started)
            try:
                async with asyncio.timeout(max(0.05, rest)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    def _retry(self) -> None:
        now = self._clock.monotonic()
        if now - self._tried >= RETRY_SECONDS:
            self._tried = now
            self.controller.retry()

    def _end_hung_api(self) -> None:
        """What ends is restarted by the launcher; what hangs ends by nobody else."""
        if self._api.hangs() and self._supervisor.end_api():
            log.error("the process api does not answer: it is killed, and started again")
            self.controller.restarts.ended("api")

    async def _tick(self) -> None:
        snapshot = await self._ask()
        self.controller.observe(snapshot)
        self._gate.update(snapshot, self._clock.monotonic(), api_answers=self._api.answers)
        if self.ready():
            self._memory.forgive()
            self._supervisor.served()
        if snapshot is None or (message := self.controller.pending()) is None:
            return
        try:
            await self._client.set_partition(message)
        except EngineUnreachable as e:
            log.warning("partition not set: %s", e)

    async def _ask(self) -> EngineSnapshot | None:
        try:
            pilot = self.controller.pilot
            return await self._client.snapshot(pilot.window.cursor, self.controller.promised, pilot.gate)
        except EngineUnreachable as e:
            log.debug("no snapshot: %s", e)
            if isinstance(e, CoreGone):
                self.controller.partitioner.core_gone()
            return None

    def _follow_file(self) -> None:
        changed = self._file.changed() if self._file else None
        if changed is None:
            return
        self._tokens = changed.token_sha256
        try:
            self.configure(changed.config)
        except ConfigRefused as e:
            # The mount lags behind what the operator has sent: the tokens count, the older settings do not.
            log.info("configuration of the file not taken: %s", e)


def load(path: Path | None) -> tuple[ConfigFile | None, AgentFile]:
    """The watched file and its present content; without a path the defaults. Raises `ConfigFileError`."""
    if path is None:
        return None, AgentFile()
    file = ConfigFile(path)
    return file, file.load()
