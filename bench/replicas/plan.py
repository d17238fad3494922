"""What is played, fixed before anything was: the trace, its ramp, the targets, the device, the rules. Pure.

The whole hour of Azure's conversations is used once: its clock is bent so that the rate is four times as high in the
middle as it is at both ends, on top of the trace's own minutes, which are 1.6 times as busy there.
"""

from __future__ import annotations

from pathlib import Path

import semipd_agent.contract
import semipd_agent.slo
import semipd_cli.simulator
import semipd_cli.simulator.scaling
import semipd_engine.contract
import semipd_engine.core
import semipd_operator.render
import semipd_operator.status
from bench.study.plan import digest
from semipd_cli.simulator.engine import Size
from semipd_cli.simulator.scaling.ramp import Ramp
from semipd_cli.simulator.scaling.run import Scene
from semipd_cli.simulator.scaling.scalers import Scaler, scaler
from semipd_cli.simulator.workloads import of_trace

SECONDS = 3600.0
RAMP = Ramp(((0, 1), (600, 1), (1500, 4), (2100, 4), (3000, 1), (3600, 1)))
TRACE, TRACE_SECONDS = "azure2023_conv.csv.gz", 3502.0
TTFT, TPOT, ORACLE = 1500, 75, "other-gpu"
"""Milliseconds, and the device, as `bench.study` plays this trace."""
SEEDS = (101, 102)
"""Of the steps' jitter; the requests are the same."""
LEAST, MOST = 1, 8
"""Pods. One is there at the beginning, and takes 120 s to start (`Start`)."""
OURS = "utilization/0.8"
RULES = (
    OURS,
    "latency/0.8",
    "queue/1",
    "latency/1",
    "queue/5",
    "utilization/0.7",
    "utilization/0.6",
    "latency/0.6",
    "queue/0.5",
)
"""Ours with the default of spec.autoscaling, and rivals; then each with other targets. `utilization/0.6` was added when
0.8 had been played."""
POOLS = ("4", "5", "6", "3")
ENOUGH, AT_MOST = 0.958, 0.74
"""What is asked of ours: joint attainment, and its part of the replica-seconds of the smallest fixed pool that attains
as much."""


def scene(traces: Path) -> Scene:
    speed = TRACE_SECONDS / RAMP.load(SECONDS)
    workload = of_trace(traces / TRACE, speed, TTFT, TPOT, ORACLE, stretch=lambda seed: 0)
    return Scene(RAMP.over(workload), SECONDS, Size(max_num_seqs=256))


def rules() -> list[Scaler]:
    """Ours and the pools that it is held against first."""
    return [scaler(text, LEAST, MOST) for text in (OURS, *POOLS[:2], *RULES[1:], *POOLS[2:])]


def code() -> str:
    """Digest of the programs that a result depends on."""
    return digest(
        semipd_cli.simulator,
        semipd_cli.simulator.scaling,
        semipd_engine.core,
        semipd_engine.contract,
        semipd_agent.contract,
        semipd_agent.slo,
        semipd_operator.render,
        semipd_operator.status,
    )
