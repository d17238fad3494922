"""What the smoke run may ask of the device: rungs under MPS, or both phases unlimited and why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from semipd_engine.contract import Enforcement, PacingMode, PartitionPlan, PhaseLimit, Split
from semipd_engine.resident.cuda_environment import NOWHERE

START_SECONDS = 120


@dataclass
class Rungs:
    """`why_not`: why there is no MPS; then each rung is a worker of its own all the same, without a limit."""

    why_not: str = ""
    total: int | None = None
    counts: Mapping[int, int] = field(default_factory=dict)
    variables: Mapping[int, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0
    _daemon: subprocess.Popen[str] | None = None

    @classmethod
    def start(cls) -> Rungs:
        """Start MPS in a process of its own, and measure its rungs."""
        command = [sys.executable, "-m", "tests.gpu.smoke.daemon"]
        daemon = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert daemon.stdout is not None
        answer = json.loads(daemon.stdout.readline() or '{"refused": "the daemon\'s process ended without a word"}')
        if "refused" in answer:
            daemon.communicate(timeout=START_SECONDS)
            return cls(why_not=answer["refused"])
        return cls(
            total=answer["total"],
            counts={int(percent): count for percent, count in answer["counts"].items()},
            variables={int(percent): found for percent, found in answer["variables"].items()},
            seconds=answer["seconds"],
            _daemon=daemon,
        )

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

    def server_status(self) -> str:
        if self._daemon is None or self._daemon.stdin is None or self._daemon.stdout is None:
            return "no server"
        self._daemon.stdin.write("\n")
        self._daemon.stdin.flush()
        return str(json.loads(self._daemon.stdout.readline() or '{"status": "the daemon is gone"}')["status"])

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.communicate(timeout=START_SECONDS)

    def _limit(self, percent: int) -> PhaseLimit:
        return PhaseLimit(percent=percent, environment=self.environment(percent), sm_count=self.counts.get(percent))
