"""``--step-log``: one JSON line for each plan sent, each step completed and each worker lost. For tests and people.

Records (times are seconds of CLOCK_MONOTONIC):
``{"event": "plan", "phase", "seq", "at", "pid", "steps", "batch", "tokens", "behind"}``: `behind` one that runs
``{"event": "step", "phase", "seq", "last", "begin", "end", "batch", "tokens"}``: rows and tokens that were computed;
`last` ends the plan
``{"event": "worker_lost", "phase", "at", "pid", "in_flight", "ending"}``: seq of the plan in flight, or null
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from semipd_engine.contract import Phase
from semipd_engine.core.fault_isolation import Ending
from semipd_engine.core.plans import tokens_of
from semipd_engine.ipc.steps import StepPlan, StepResult


class StepLog:
    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", buffering=1) if path is not None else None

    def plan(self, phase: Phase, plan: StepPlan, pid: int, at: float, *, rung: int = 0, behind: bool = False) -> None:
        self._write(
            event="plan",
            phase=phase,
            seq=plan.seq,
            at=at,
            pid=pid,
            steps=plan.max_steps,
            batch=len(plan.rows),
            tokens=tokens_of(plan),
            rung=rung,
            behind=behind,
        )

    def step(self, phase: Phase, plan: StepPlan, result: StepResult) -> None:
        first = result.seq == plan.seq
        end = result.finished_at
        self._write(
            event="step",
            phase=phase,
            seq=result.seq,
            last=result.last,
            begin=end - result.seconds,
            end=end,
            batch=len(plan.rows) if first else len(result.tokens),
            tokens=tokens_of(plan) if first else len(result.tokens),
        )

    def worker_lost(self, phase: Phase, pid: int, in_flight: int | None, ending: Ending, at: float) -> None:
        self._write(event="worker_lost", phase=phase, at=at, pid=pid, in_flight=in_flight, ending=str(ending))

    def _write(self, **record: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
