"""What a split does to prefill's service time while both phases are saturated (``make bench-split``).

Alternates 50/50 and 80/20 several times in one run of the engine on the 0.5 B model and compares the medians of a
prompt's service time (each prompt is one chunk, so that all are the same work) and both phases' CPU seconds. Writes
OUT/split_rate.json and .svg, and fails unless the service time falls by at least 25 %.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.engine import proc
from tests.engine.harness import TORCH_RESIDENT, Engine
from tqdm import tqdm

from bench.usage import RefusedError, folder, guarded, made
from e2e.lib.models import random_model
from semipd_engine.contract import DType, EngineOptions, Phase, SetPartition, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.usage import Parser

ROUNDS, SECONDS = 3, 20.0
PROMPT_TOKENS = 256
"""The default chunk: one step serves a prompt."""
LEAST_FALL_PERCENT = 25
SPLITS = (Split(prefill=50, decode=50), Split(prefill=80, decode=20))
NAMES = [f"{split.prefill}/{split.decode}" for split in SPLITS]


def measure(engine: Engine, split: Split, epoch: int) -> dict[str, Any]:
    engine.control(SetPartition(split_epoch=epoch, plan=cpu_plan(split, sorted(os.sched_getaffinity(0)))))
    while any(engine.worker(phase).applied_epoch < epoch for phase in Phase):
        time.sleep(0.02)
    pids = {phase: engine.worker(phase).pid for phase in Phase}
    began, before = time.monotonic(), {phase: proc.cpu_seconds(pid) for phase, pid in pids.items()}
    time.sleep(SECONDS)
    ended, after = time.monotonic(), {phase: proc.cpu_seconds(pid) for phase, pid in pids.items()}
    steps = [
        s for s in engine.records("step") if s["phase"] == Phase.PREFILL and began <= s["begin"] and s["end"] <= ended
    ]
    if not steps:
        raise RefusedError(f"split {split.prefill}/{split.decode}: prefill finished no step in {SECONDS:.0f} s")
    return {
        "split": NAMES[SPLITS.index(split)],
        "service_seconds": [s["end"] - s["begin"] for s in steps if s["tokens"] == PROMPT_TOKENS],
        "cpu_seconds": {phase.value: after[phase] - before[phase] for phase in Phase},
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="bench.split_rate", description=__doc__)
    parser.add_argument("--out", type=folder, default="out/bench", help="folder of split_rate.json and .svg")
    out = parser.parse_args(words).out
    return guarded(parser.prog, lambda: carried_out(out))


def carried_out(out: Path) -> int:
    """Raises `RefusedError`."""
    rng, model = random.Random(0), made("the random model", lambda: random_model("llama", "small"))
    with tempfile.TemporaryDirectory() as folder:
        options = EngineOptions(
            model=model,
            run_dir=Path(folder),
            step_log=Path(folder) / "steps.jsonl",
            dtype=DType.BFLOAT16,
            kv_cache_memory=768 << 20,
            max_model_len=4096,
            prefix_caching=False,
        )
        engine = Engine(options, TORCH_RESIDENT, GOMP_SPINCOUNT="0")
        try:
            engine.wait_state(seconds=120)
            client = engine.client()
            for _ in range(4):
                client.add([rng.randrange(300, 8000) for _ in range(32)], 4000)
            for _ in range(600):
                client.add([rng.randrange(300, 8000) for _ in range(PROMPT_TOKENS)], 1)
            order = [split for _ in range(ROUNDS) for split in SPLITS]
            rows = [measure(engine, split, 100 + n) for n, split in enumerate(tqdm(order, desc="split", unit="run"))]
        finally:
            engine.stop()
    times = {name: [t for row in rows if row["split"] == name for t in row["service_seconds"]] for name in NAMES}
    before, after = (statistics.median(times[name]) for name in NAMES)
    fall = 100 * (1 - after / before)
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "rows": rows,
        "median_seconds": dict(zip(NAMES, (before, after), strict=True)),
        "fall_percent": fall,
    }
    (out / "split_rate.json").write_text(json.dumps(result, indent=1))
    plot(times, out / "split_rate.svg")
    shown = " to ".join(f"{median:.3f} s at {name}" for name, median in result["median_seconds"].items())
    print(f"a prompt's service time falls by {fall:.0f} %, from {shown}")
    if fall < LEAST_FALL_PERCENT:
        print(f"FAIL: at least {LEAST_FALL_PERCENT} % is promised", file=sys.stderr)
    return int(fall < LEAST_FALL_PERCENT)


def plot(times: dict[str, list[float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.boxplot(list(times.values()), tick_labels=list(times))
    axes.set(
        xlabel="split (prefill/decode)",
        ylabel=f"seconds for {PROMPT_TOKENS} tokens",
        ylim=(0, None),
        title="both phases saturated",
    )
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
