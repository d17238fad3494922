"""``python -m bench.slo.prediction PROFILE --out DIR``: the knee rate under three splits, said before a run.

A profile (`semipd-engine profile`) becomes the simulated engine's costs; under each split the rate is bisected up to
which nine requests of ten keep both targets. What was said is written with its digest, so that whoever measures later
can show that nothing was changed since. Runs no real engine.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.usage import folder
from semipd_agent.slo.profiles import learned
from semipd_agent.slo.step_model import ShareLaw, StepModel
from semipd_cli.simulator.engine import Arrival, Size, VirtualEngine
from semipd_cli.simulator.oracle import Oracle
from semipd_cli.simulator.workloads import Lengths, stream
from semipd_engine.contract import Device, Phase, ProfileError, Split, StepProfileFile, read_profile
from semipd_engine.core.observation import StepSize
from semipd_engine.usage import Parser

SPLITS = (Split(), Split(prefill=100, decode=30), Split(prefill=40, decode=100))
KEPT = 0.9
"""Part of the requests that must meet both targets."""
PRECISION = 1.03
AFTER = 120.0
"""Seconds after the last arrival; who is not done by then has missed."""


@dataclass(frozen=True)
class Question:
    """What is asked of the engine: Poisson arrivals of these lengths, and these targets."""

    prompt: int = 400
    output: int = 60
    ttft: float = 2.0
    tpot: float = 0.12
    """Seconds."""
    seconds: float = 120.0
    seeds: tuple[int, ...] = (1, 2, 3)


class ChangedError(Exception):
    """The prediction is not the one that was written; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class ModelOracle(Oracle):
    """Steps as the production model says them; without jitter, of which it knows nothing."""

    model: StepModel
    products: dict[tuple[Phase, int], tuple[float, float]] = field(default_factory=dict)
    speeds: dict[tuple[Phase, int, int], float] = field(default_factory=dict)
    """That were asked for: a simulated engine asks with each step and event."""

    def work(self, phase: Phase, size: StepSize, rng: random.Random) -> float:
        key = phase, size.tokens
        if key not in self.products:
            c0, c1, c2 = self.model.costs(phase, size.tokens)
            self.products[key] = c0 + c1 * size.tokens, c2
        product, position = self.products[key]
        return product + position * size.context

    def mixed(self, size: StepSize, rng: random.Random) -> float:
        rows, context = size.tokens - size.prompt_tokens, size.context - size.prompt_context
        return self.mixing * self.model.mixed_seconds(size.prompt_tokens, size.prompt_context, rows, context)

    def speed(self, phase: Phase, split: Split) -> float:
        key = phase, split.prefill, split.decode
        if key not in self.speeds:
            self.speeds[key] = self.model.speed(phase, split)
        return self.speeds[key]


def model_of(profile: StepProfileFile) -> StepModel:
    """What the agent learns from the file."""
    return StepModel(learned(profile, ShareLaw.PACED if profile.key.device == Device.CPU else ShareLaw.SPATIAL))


def oracle_of(profile: StepProfileFile) -> Oracle:
    model = model_of(profile)
    return ModelOracle(prefill=model.profile.prefill, decode=model.profile.decode, model=model)


def attainment(oracle: Oracle, split: Split, rate: float, asked: Question, size: Size) -> float:
    """Joint, the mean over the seeds."""
    kept = total = 0
    for seed in asked.seeds:
        arrivals = list(stream(rate, asked.seconds, Lengths(asked.prompt, asked.output), seed))
        total += len(arrivals)
        kept += met(oracle, split, arrivals, asked.ttft, asked.tpot, size)
    return kept / total if total else 1.0


def met(oracle: Oracle, split: Split, arrivals: Sequence[Arrival], ttft: float, tpot: float, size: Size) -> int:
    """How many of these keep both targets (seconds)."""
    engine = VirtualEngine(arrivals, oracle, size, 0, split)
    engine.run_until((arrivals[-1].at if arrivals else 0.0) + AFTER)
    return sum(d.ttft is not None and d.ttft <= ttft and (d.tpot or 0.0) <= tpot for d in engine.done)


def knee(keeps: Callable[[float], bool], low: float = 0.05, high: float = 64.0) -> float:
    """The largest rate that `keeps`, to `PRECISION`; 0 where the lowest does not, `high` where the highest does."""
    if not keeps(low):
        return 0.0
    while keeps(min(2 * low, high)):  # from below: what is far beyond the knee takes longest to play
        low = min(2 * low, high)
        if low == high:
            return high
    high = min(2 * low, high)
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return math.sqrt(low * high)


def predict(
    profile: StepProfileFile,
    asked: Question,
    size: Size,
    splits: Sequence[Split] = SPLITS,
    step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Requests a second by split."""
    oracle, found = oracle_of(profile), dict[str, float]()
    for split in splits:

        def keeps(rate: float, split: Split = split) -> bool:
            step()
            return attainment(oracle, split, rate, asked, size) >= KEPT

        found[str(split)] = round(knee(keeps), 3)
    return found


def write(path: Path, profile: StepProfileFile, asked: Question, size: Size, knees: dict[str, float]) -> str:
    """The digest, which lies beside the file, too."""
    said = {
        "question": asdict(asked),
        "size": asdict(size),
        "profile": hashlib.sha256(profile.model_dump_json().encode()).hexdigest(),
        "key": profile.key.model_dump(),
        "measured_at": profile.measured_at,
        "knees": knees,
    }
    return seal(path, said)


def seal(path: Path, said: Mapping[str, Any]) -> str:
    """Writes it as JSON, and its digest, which is returned, beside it. The file comes last: one that is there is
    sealed."""
    content = (json.dumps(said, indent=1) + "\n").encode()
    digest = hashlib.sha256(content).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    _digest_of(path).write_text(f"{digest}  {path.name}\n")
    fresh = path.with_name(path.name + ".fresh")
    fresh.write_bytes(content)
    fresh.replace(path)
    return digest


def unsealed(path: Path) -> tuple[dict[str, Any], str]:
    """What was said, and its digest. Raises `ChangedError`."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    try:
        written = _digest_of(path).read_text().split()[:1]
    except FileNotFoundError:
        written = []
    if written != [digest]:
        raise ChangedError(f"{path} was changed after it was written: predict anew, before the run")
    return json.loads(content), digest


def unchanged(path: Path) -> dict[str, float]:
    """The rates that were said. Raises `ChangedError`."""
    knees: dict[str, float] = unsealed(path)[0]["knees"]
    return knees


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.slo.prediction", description=__doc__)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--out", type=folder, default=Path("out/bench/slo"), help="folder of prediction.json")
    options = parser.parse_args(words)
    try:
        profile = read_profile(options.profile)
    except ProfileError as error:
        print(f"bench.slo.prediction: {error}", file=sys.stderr)
        return 2
    asked, size = Question(), Size(prefill_chunk_tokens=256)
    with tqdm(desc="predict", unit="rate", disable=not sys.stderr.isatty()) as bar:
        knees = predict(profile, asked, size, step=bar.update)
    path = options.out / "prediction.json"
    digest = write(path, profile, asked, size, knees)
    print("\n".join(f"{split}: {rate:g} requests/s" for split, rate in knees.items()))
    print(f"{path}, sha256 {digest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
