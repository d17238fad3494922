"""Steps of sizes that the profile has not measured, and how far the learned model's words are from what they took.

An engine tells sums of step times by kind (phase, split, batch and context to powers of two); what a point adds to the
sums of a kind is one figure: the time of its mean step. `python -m bench.slo.steps MODEL PROFILE OUT` runs the points
with the workers that serve.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from bench.cpu.servers import KV_BYTES
from bench.slo.prediction import model_of
from bench.traffic import quantile
from semipd_agent.slo.step_model import StepModel, kinds
from semipd_engine.contract import Device, DType, EngineOptions, Split, StepProfileFile, StepTimes, read_profile
from semipd_engine.profiler.processes import running
from semipd_engine.profiler.sweep import WHOLE, Point, sweep

MAX_MODEL_LEN = 2048
LEAST_STEPS = 4
"""Fewer steps say more of the machine than of the model."""
WARM = Point(WHOLE, 2, 64, 24, 2, 200)
ANSWER, BESIDE = 32, 96
POINTS = (
    *(Point(WHOLE, 0, 0, 0, 5, prompt) for prompt in (40, 100, 160, 220, 400, 700, 1500)),
    *(Point(WHOLE, rows, context, ANSWER, 0, 0) for rows, context in ((3, 100), (3, 1200), (3, 300), (5, 64))),
    *(Point(WHOLE, rows, context, ANSWER, 0, 0) for rows, context in ((5, 800), (10, 200), (20, 100), (28, 300))),
    *(
        Point(Split(prefill=prefill, decode=decode), rows, 200, BESIDE, 8, prompt)
        for (prefill, decode), rows, prompt in (
            *(((100, 50), 5, 180), ((50, 100), 5, 180), ((70, 100), 14, 240), ((100, 70), 14, 120)),
            *(((100, 30), 7, 230), ((30, 100), 7, 230), ((100, 100), 3, 140), ((90, 60), 18, 240)),
        )
    ),
)
"""Lengths, batches, contexts and splits between those of `semipd_engine.profiler.sweep`."""


@dataclass(frozen=True)
class Held:
    """What one point added to one kind of step."""

    point: str
    phase: str
    steps: int
    measured_ms: float
    """Of the mean step."""
    predicted_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1


def spread(count: int) -> list[Point]:
    """So many of the points, evenly."""
    apart = max(1.0, len(POINTS) / count)
    return [POINTS[int(n * apart)] for n in range(min(count, len(POINTS)))]


def held(model: StepModel, point: str, before: Sequence[StepTimes], after: Sequence[StepTimes]) -> list[Held]:
    """Of the kinds that grew by enough steps. The time beside the other phase is known from the measurement; how much
    longer such a step takes is the model's word."""
    was = kinds(before)
    found = [
        Held(point, *figures) for kind, now in kinds(after).items() if (figures := _mean(model, was.get(kind), now))
    ]
    return [one for one in found if one.steps >= LEAST_STEPS]


def _mean(model: StepModel, was: StepTimes | None, now: StepTimes) -> tuple[str, int, float, float] | None:
    def grown(name: str) -> float:
        return float(getattr(now, name) - (getattr(was, name) if was else 0))

    steps, seconds = int(grown("steps")), grown("alone_seconds") + grown("shared_seconds")
    if steps <= 0 or seconds <= 0:
        return None
    c0, c1, c2 = model.costs(now.phase, grown("tokens") / steps)
    work = c0 * steps + c1 * grown("tokens") + c2 * grown("context_tokens")
    shared = grown("shared_seconds") / seconds
    predicted = work / (1 - shared + shared * model.speed(now.phase, now.split))
    return str(now.phase), steps, 1e3 * seconds / steps, 1e3 * predicted / steps


def quantiles(found: Sequence[Held]) -> tuple[float, float]:
    """Percent: the median and the 95th percentile of the errors' amounts."""
    errors = [100 * abs(one.error) for one in found]
    return quantile(errors, 50) or 0.0, quantile(errors, 95) or 0.0


def measure(folder: Path, profile: StepProfileFile, points: Sequence[Point]) -> list[Held]:
    """Raises `EngineFailed`, `Stalled`."""
    model, found = model_of(profile), list[Held]()
    with tempfile.TemporaryDirectory(prefix="bench-slo-") as name:
        options = EngineOptions(
            model=folder,
            device=Device.CPU,
            dtype=DType.BFLOAT16,
            max_model_len=MAX_MODEL_LEN,
            kv_cache_memory=KV_BYTES,
            prefix_caching=False,
            await_partition=True,
            run_dir=Path(name),
        )
        with running(options) as engine:
            engine.start()
            for point in tqdm((WARM, *points), desc="held-out steps", disable=not sys.stderr.isatty()):
                before = engine.steps()
                sweep(engine, [point], lambda _: None)
                if point is not WARM:
                    found += held(model, str(point), before, engine.steps())
    return found


def read(path: Path) -> list[Held]:
    rows: list[Mapping[str, object]] = json.loads(path.read_text())
    return [Held(**row) for row in rows]  # type: ignore[arg-type]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.slo.steps", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("profile", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--points", type=int, default=len(POINTS))
    options = parser.parse_args(words)
    found = measure(options.model, read_profile(options.profile), spread(options.points))
    fresh = options.out.with_suffix(".fresh")
    fresh.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    fresh.replace(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
