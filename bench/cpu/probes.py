"""What HTTP does not show, each in a process of its own that prints one JSON object.

python -m bench.cpu.probes limits
python -m bench.cpu.probes memory MODEL
python -m bench.cpu.probes likelihood MODEL
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
TOKENS, WINDOW = 10_000, 1_000
"""Of the likelihood: tokens judged, and how many of them make one sequence."""


def limits() -> dict[str, float]:
    """How fast this machine reads memory and multiplies bfloat16 matrices, all threads together."""
    from bench.token_time import Limits

    found = Limits.measure()
    return {"read_gb_per_s": found.read / 1e9, "gemm_gflop_per_s": 2 * found.products / 1e9}


def memory(model: Path) -> dict[str, float]:
    """Megabytes of our processes: the loading one at its peak; after traffic all of them, and a worker's own."""
    import asyncio

    from bench.cpu import servers
    from bench.traffic import Request, prompt_ids, replay
    from semipd_agent.engine_client import EngineClient

    with tempfile.TemporaryDirectory() as name, Peak() as peak:
        folder = Path(name)
        with servers.running(servers.SERVERS["ours"], model, folder, folder / "log") as ours:
            peak.stop()
            plan = [Request(0.0, 32, prompt_ids(256, seed=n)) for n in range(8)]
            asyncio.run(replay(plan, ours.url))
            snapshot = asyncio.run(EngineClient(folder / "run", timeout=10).snapshot(0))
            tree = [ours.process.pid, *(p.pid for p in psutil.Process(ours.process.pid).children(recursive=True))]
            workers = [_smaps(worker.pid) for worker in snapshot.workers]
            pss = sum(_smaps(pid)["Pss"] for pid in tree)
    assert snapshot.model is not None
    return {
        "weights_mb": snapshot.model.weight_bytes / 1e6,
        "kv_mb": snapshot.model.kv_bytes / 1e6,
        "pss_mb": pss / 1e6,
        "loading_peak_mb": peak.most / 1e6,
        "worker_private_mb": max(w["Private_Clean"] + w["Private_Dirty"] for w in workers) / 1e6,
    }


class Peak:
    """The most that any one descendant of this process held at a time, sampled every 5 ms: RssAnon + RssShmem."""

    def __init__(self) -> None:
        self.most = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        me, known, looked = psutil.Process(), list[psutil.Process](), 0.0
        while not self._end.wait(0.005):
            if time.monotonic() - looked > 0.1:
                known, looked = me.children(recursive=True), time.monotonic()
            self.most = max([self.most, *(_held(process.pid) for process in known)])


def _held(pid: int) -> int:
    """Bytes; 0 of a process that is gone."""
    with suppress(OSError):
        return sum(_kilobytes(Path(f"/proc/{pid}/status"), ("RssAnon", "RssShmem")).values())
    return 0


def _smaps(pid: int) -> dict[str, int]:
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), ("Pss", "Private_Clean", "Private_Dirty"))


def _kilobytes(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Those lines of a file of `NAME: N kB`, in bytes."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0][:-1]: 1024 * int(row[1]) for row in rows if row[0][:-1] in names}


def likelihood(model: Path) -> dict[str, float]:
    """Negative log-likelihood a token of this project's documents in bfloat16: ours, and that of transformers."""
    from tokenizers import Tokenizer

    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids[: TOKENS + 1]
    windows = [ids[n : n + WINDOW + 1] for n in range(0, len(ids) - 1, WINDOW)]
    ours, theirs = _mean(_ours(model, windows)), _mean(_transformers(model, windows))
    return {
        "tokens": float(sum(len(window) - 1 for window in windows)),
        "nll": ours,
        "transformers_nll": theirs,
        "difference_percent": 100 * (ours / theirs - 1),
    }


def _mean(scores: Iterable[tuple[float, int]]) -> float:
    sums = list(scores)
    return math.fsum(total for total, _ in sums) / sum(count for _, count in sums)


def _ours(model: Path, windows: Sequence[Sequence[int]]) -> Iterable[tuple[float, int]]:
    """The way of a prompt in a worker: chunks of 256 over a paged cache, then logits of every row."""
    import torch

    from semipd_engine.cards.registry import read_card
    from semipd_engine.ipc.messages import Row, StepPlan
    from semipd_engine.kernels import choose
    from semipd_engine.memory.kv_pool import KVPool
    from semipd_engine.model.decoder import Decoder
    from semipd_engine.model.loader import load_weights
    from semipd_engine.pacing.quantum import Unpaced
    from semipd_engine.worker.input_batch import InputBatch, InputBuffers, Limits

    card, kernels, dtype, chunk, block = read_card(model), choose("cpu"), torch.bfloat16, 256, 16
    weights = load_weights(card, model, dtype, kernels, inherited=True)
    blocks = -(-(WINDOW + 1) // block)
    kv = KVPool.create(card.kv_layout(block, dtype.itemsize), blocks, dtype)
    decoder = Decoder(card, weights, kv, kernels, Unpaced())
    allowed = Limits(card.vocab_size, blocks, block, card.max_position_embeddings)
    buffers = InputBuffers(kv.layer(0)[0].device)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for number, window in enumerate(windows):
        for start in range(0, len(window) - 1, chunk):
            tokens = list(window[start : start + chunk])[: len(window) - 1 - start]
            plan = StepPlan(number, 1, [Row(number, tokens, start, list(range(blocks)))])
            with torch.inference_mode():
                batch, _ = InputBatch(plan, allowed, buffers).next()
                step = decoder.forward(batch)
                logits = decoder.logits(step, torch.arange(len(tokens)))
                wanted = torch.tensor(window[start + 1 : start + 1 + len(tokens)])
                yield float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")), len(tokens)


def _transformers(model: Path, windows: Sequence[Sequence[int]]) -> Iterable[tuple[float, int]]:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    for window in windows:
        ids = torch.tensor(window)
        with torch.inference_mode():
            logits = reference(ids[None, :-1]).logits[0].float()
        yield float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")), len(window) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="probe", required=True)
    commands.add_parser("limits")
    for name in ("memory", "likelihood"):
        commands.add_parser(name).add_argument("model", type=Path)
    asked = parser.parse_args()
    found = (
        limits() if asked.probe == "limits" else {"memory": memory, "likelihood": likelihood}[asked.probe](asked.model)
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
