"""What the check may ask of the device: rungs under MPS, or both phases unlimited and why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semipd_agent.partitioner.mps import green
from semipd_agent.partitioner.mps.green import Green
from semipd_agent.partitioner.mps.programs import surroundings
from semipd_engine.contract import Enforcement, PacingMode, PartitionPlan, Phase, PhaseLimit, Split
from semipd_engine.resident.cuda_environment import NOWHERE

STOP_SECONDS = 30


@dataclass
class Rungs:
    """`why_not`: why there is no MPS; then each rung is a worker of its own all the same, without a limit."""

    why_not: str = ""
    total: int | None = None
    counts: Mapping[int, int] = field(default_factory=dict)
    variables: Mapping[int, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0
    with_context: bool = False
    _daemon: subprocess.Popen[str] | None = None

    @classmethod
    def start(cls, probe: Path | None = None, known: Mapping[str, Any] | None = None) -> Rungs:
        """Start MPS in a process of its own. `known`: total and counts of an earlier start, which are not measured
        again. The daemon's process gets no MPS variables: those of our own keep us out of MPS, and it is MPS."""
        command = [sys.executable, "-m", "tests.gpu.check.daemon", *([str(probe)] if probe else [])]
        pipe = subprocess.PIPE
        daemon = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=surroundings({}))
        rungs = cls(_daemon=daemon)
        answer = rungs._ask(json.dumps(known or {}))
        if "refused" in answer or "counts" not in answer:
            rungs.stop()
            return cls(why_not=answer.get("refused") or str(answer.get("status")))
        rungs.total, rungs.seconds = answer["total"], answer["seconds"]
        rungs.counts = {int(percent): count for percent, count in answer["counts"].items()}
        rungs.variables = {int(percent): found for percent, found in answer["variables"].items()}
        rungs.with_context = answer["with_context"]
        return rungs

    def environment(self, percent: int) -> dict[str, str]:
        """Without MPS the percentage only tells the rungs apart: the directory leads nowhere."""
        return dict(self.variables.get(percent) or {"CUDA_MPS_PIPE_DIRECTORY": f"{NOWHERE}/{percent}"})

    def plan(self, prefill: int, decode: int) -> PartitionPlan:
        return PartitionPlan(
            split=Split(prefill=prefill, decode=decode),
            enforcement=Enforcement.NONE if self.why_not else Enforcement.SPATIAL_CAP,
            mode=PacingMode.RUNGS,
            prefill=self._limit(prefill),
            decode=self._limit(decode),
            whole=self._limit(100),
        )

    def green_plan(self, prefill: int, decode: int, found: Green) -> PartitionPlan:
        """The same as streams of one worker for each phase. Without MPS, too."""

        def limit(phase: Phase, percent: int) -> PhaseLimit:
            return PhaseLimit(
                percent=percent,
                environment=green.environment(self.environment(100)),
                rung=green.number(percent),
                sm_count=found.sms[phase].get(percent),
            )

        return PartitionPlan(
            split=Split(prefill=prefill, decode=decode),
            enforcement=Enforcement.SPATIAL_CAP,
            mode=PacingMode.RUNGS,
            prefill=limit(Phase.PREFILL, prefill),
            decode=limit(Phase.DECODE, decode),
            whole=limit(Phase.DECODE, 100),
        )

    def server_status(self) -> str:
        return str(self._ask("status").get("status"))

    def terminate(self, client: int) -> str:
        """Have MPS end a client. The server's status afterwards."""
        return str(self._ask(f"terminate {client}").get("status"))

    def stop(self) -> None:
        if self._daemon is not None:
            try:
                self._daemon.communicate(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
            self._daemon = None

    def _ask(self, line: str) -> dict[str, Any]:
        daemon = self._daemon
        if daemon is None or daemon.stdin is None or daemon.stdout is None:
            return {"status": "no server"}
        try:
            daemon.stdin.write(line + "\n")
            daemon.stdin.flush()
            answer: dict[str, Any] = json.loads(daemon.stdout.readline())
        except (OSError, ValueError):
            return {"status": f"the daemon's process has ended, exit status {daemon.poll()}"}
        return answer

    def _limit(self, percent: int) -> PhaseLimit:
        return PhaseLimit(percent=percent, environment=self.environment(percent), sm_count=self.counts.get(percent))
