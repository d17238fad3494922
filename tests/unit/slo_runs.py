"""Plans, profiles and samples of `make bench-slo`, made up, for its tests."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cpu.schedule import Sample, Turn
from bench.slo.plan import AGAIN, ARMS, AUTO, KNEE, PREDICTED, SHIFT, STILL, Effort, Plan
from bench.slo.steps import Held
from bench.slo.verdicts import MODEL, Run
from semipd_engine.contract import Phase, ProfileKey, Split, StepProfileFile, StepTimes

EFFORT = Effort(requests=20, trials=4, rounds=2, still_seconds=10, phase_seconds=5, alone=2, held_out=8)
KNEES = {"100/100": 2.0, "100/30": 1.8, "40/100": 1.5}
PLAN = Plan(
    number=1,
    commit="abc",
    machine="here",
    at="2026-01-02T00:00:00+00:00",
    effort=EFFORT,
    profile="p",
    alone={"ttft_ms": 200.0, "tpot_ms": 20.0},
    ttft_ms=1000,
    tpot_ms=60,
    knees=KNEES,
    rates={"still": 1.8, "conv": 1.0, "code": 1.0},
)
KEY = ProfileKey(architecture="llama", weight_bytes=1, device="cpu", dtype="bfloat16", kernels="avx2", cpus=2)


def times(phase: Phase, size: int, steps: int, alone: float, shared: float = 0.0, context: int = 0) -> StepTimes:
    """Seconds are those of all steps."""
    return StepTimes(
        phase=phase,
        split=Split(prefill=50, decode=50),
        batch=size,
        context=context,
        steps=steps,
        tokens=steps * size,
        context_tokens=0,
        alone_seconds=alone,
        shared_seconds=shared,
    )


def profile(slower: float = 1.0) -> StepProfileFile:
    """Prefill 1 ms a token, decode 10 ms a step and one a row; beside the other phase twice that."""
    work = {Phase.PREFILL: lambda tokens: 1e-3 * tokens, Phase.DECODE: lambda rows: 1e-2 + 1e-3 * rows}
    found = []
    for phase, sizes in ((Phase.PREFILL, (16, 32, 64, 128, 256)), (Phase.DECODE, (1, 2, 4, 8, 16))):
        for size in sizes:
            seconds = 50 * slower * work[phase](size)
            found.append(times(phase, size, 50, seconds))
            found.append(times(phase, size, 50, 0.0, 2 * seconds, context=1))
    return StepProfileFile(key=KEY, model="m", machine="here", measured_at="now", seconds=60, steps=tuple(found))


def trial(split: str, number: int, rate: float, good: bool) -> Sample:
    figures = {"rate": rate, "met_percent": 95.0 if good else 50.0, "late_p99_ms": 1.0}
    return Sample(Turn(MODEL, KNEE, number, f"{rate:g}/s", split), figures)


def knee(split: str, good: float, bad: float) -> list[Sample]:
    return [trial(split, 0, good, True), trial(split, 1, bad, False)]


def arm(stage: str, name: str, met: float, number: int = 0, late: float = 1.0) -> Sample:
    """Of a hundred requests."""
    figures = {"requests": 100.0, "met": met, "met_percent": met, "late_p99_ms": late}
    if name == AUTO:
        figures |= {"moves": 2.0, "profile_measured": 1.0}
    return Sample(Turn(MODEL, stage, number, stage, name), figures)


def arms(stage: str, met: dict[str, float], rounds: int = 1) -> list[Sample]:
    return [arm(stage, name, met.get(name, 90.0), number) for name in ARMS for number in range(rounds)]


def run(samples: Sequence[Sample] = (), errors: Sequence[float] = (0.01,) * 20) -> Run:
    found = [Held("p", "decode", 10, 10.0, 10.0 * (1 + error)) for error in errors]
    return Run(PLAN, "digest", found, samples)


def whole(still: float = 89.0, shift: float = 95.0, again: float = 91.0) -> Run:
    """A run in which every claim holds, but for what is asked."""
    knees = [sample for split in PREDICTED for sample in knee(split, 0.98 * KNEES[split], 1.03 * KNEES[split])]
    loads = arms(STILL, {AUTO: still, AGAIN: again}, 2) + arms(SHIFT, {AUTO: shift, AGAIN: again})
    return run([*knees, *loads])


def holds(found: Run) -> list[bool | None]:
    return [verdict.holds for verdict in found.verdicts()]
