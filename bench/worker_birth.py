"""How long a phase is without a worker (``python -m bench.worker_birth``): from SIGKILL until another one is ready.

Kills each phase's worker of an idle engine on the 0.5 B model in turns, after it has served a prompt, and asks core for
its workers every millisecond. So the time holds the kernel's notice, core's order, the fork and the model's wiring.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.engine.harness import TORCH_RESIDENT, Engine

from bench.usage import count, guarded, made
from e2e.lib.models import random_model
from e2e.lib.waiting import wait_until
from semipd_engine.contract import DType, EngineOptions, Phase, WorkerState
from semipd_engine.usage import Parser


def rebirth(engine: Engine, phase: Phase) -> float:
    began, killed = time.monotonic(), engine.kill_worker(phase)

    def born() -> bool:
        worker = engine.worker(phase)
        return worker.pid != killed and worker.state is WorkerState.READY

    wait_until(born, 60, f"another {phase} worker", every_s=0.001)
    return time.monotonic() - began


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="bench.worker_birth", description=__doc__)
    parser.add_argument("--kills", type=count, default=10, help="of each phase")
    kills = parser.parse_args(words).kills
    return guarded(parser.prog, lambda: carried_out(kills))


def carried_out(kills: int) -> int:
    """Raises `RefusedError`."""
    model = made("the random model", lambda: random_model("llama", "small"))
    with tempfile.TemporaryDirectory() as folder:
        options = EngineOptions(
            model=model,
            run_dir=Path(folder),
            dtype=DType.BFLOAT16,
            kv_cache_memory=768 << 20,
            max_model_len=4096,
        )
        engine = Engine(options, TORCH_RESIDENT)
        try:
            engine.wait_state(seconds=120)
            client = engine.client()
            times: dict[Phase, list[float]] = {phase: [] for phase in Phase}
            for number in range(kills):
                for phase in Phase:
                    client.add([300 + number] * 32, 4).wait(60)
                    times[phase].append(1e3 * rebirth(engine, phase))
        finally:
            engine.stop()
    for phase, values in times.items():
        shown = f"median {statistics.median(values):.0f}, {min(values):.0f} to {max(values):.0f}"
        print(f"{phase}: {shown} ms from SIGKILL until the next worker is ready, {kills} kills")
    return 0


if __name__ == "__main__":
    sys.exit(main())
