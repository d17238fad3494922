"""What HTTP does not show, each in a process of its own that prints one JSON object.

python -m bench.cpu.probes limits MODEL
python -m bench.cpu.probes memory MODEL
python -m bench.cpu.probes likelihood MODEL
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

TOKENS, WINDOW = 10_000, 1_000
"""Of the likelihood: tokens judged, and how many of them make one sequence."""


def limits(model: Path) -> dict[str, float]:
    """How fast this machine reads memory and multiplies bfloat16 matrices, all threads together; and how much of the
    model a decode step reads."""
    from bench.token_time import Limits

    found = Limits.measure()
    figures = {"read_gb_per_s": found.read / 1e9, "gemm_gflop_per_s": 2 * found.products / 1e9}
    return figures | {"step_gb": step_bytes(model) / 1e9}


def step_bytes(model: Path) -> int:
    """Of the weights, without an embedding of which a step reads but some rows."""
    tied, total = bool(json.loads((model / "config.json").read_text()).get("tie_word_embeddings")), 0
    for file in model.glob("*.safetensors"):
        with file.open("rb") as opened:
            entries = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, entry in entries.items():
            if name != "__metadata__" and (tied or "embed_tokens" not in name):
                total += entry["data_offsets"][1] - entry["data_offsets"][0]
    return total


def memory(model: Path) -> dict[str, float]:
    """Megabytes of our processes: the loading one at its peak; after traffic all of them, and a worker's own."""
    import asyncio

    from bench.cpu import memory as maps
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
            workers = [maps.read_smaps(worker.pid) for worker in snapshot.workers]
            assert snapshot.model is not None
            held = maps.held([maps.read_smaps(pid) for pid in tree], snapshot.model.weight_bytes)
    return {
        "weights_mb": snapshot.model.weight_bytes / 1e6,
        "kv_mb": snapshot.model.kv_bytes / 1e6,
        "pss_mb": held.pss / 1e6,
        "kv_pss_mb": held.kv_pss / 1e6,
        "beside_weights_mb": held.beside / 1e6,
        "loading_peak_mb": peak.most / 1e6,
        "worker_private_mb": max(sum(area.private for area in areas) for areas in workers) / 1e6,
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


def _kilobytes(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Those lines of a file of `NAME: N kB`, in bytes."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0][:-1]: 1024 * int(row[1]) for row in rows if row[0][:-1] in names}


def likelihood(model: Path) -> dict[str, float]:
    """Negative log-likelihood a token of this project's documents in bfloat16: ours, and that of transformers."""
    from bench.cpu.identity import documents

    windows = text_windows(model, documents(), TOKENS)
    return compared(list(our_scores(model, windows)), list(reference_scores(model, windows)))


def text_windows(model: Path, text: str, tokens: int) -> list[list[int]]:
    """Sequences of `WINDOW` tokens and the one that follows, of a text's first so many."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids[: tokens + 1]
    return [ids[n : n + WINDOW + 1] for n in range(0, len(ids) - 1, WINDOW)]


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of the tokens' negative log-likelihoods: the means, by how much they differ, and how sure that is."""
    mine, other = statistics.fmean(ours), statistics.fmean(theirs)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return {
        "tokens": float(len(ours)),
        "nll": mine,
        "transformers_nll": other,
        "difference_percent": 100 * (mine / other - 1),
        "error_percent": 100 * statistics.stdev(differences) / math.sqrt(len(ours)) / other,
    }


def our_scores(model: Path, windows: Sequence[Sequence[int]]) -> Iterator[float]:
    """The way of a prompt in a worker: chunks of 256 over a paged cache, then logits of every row."""
    import torch

    from semipd_engine.cards.registry import read_card
    from semipd_engine.ipc.steps import Row, StepPlan
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
                yield from torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none").tolist()


def reference_scores(
    model: Path, windows: Sequence[Sequence[int]], change: Callable[[Any], object] = lambda _: None
) -> Iterator[float]:
    """`change` may spoil the transformers model before it is asked."""
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.inference_mode():
        change(reference)
        for window in windows:
            ids = torch.tensor(window)
            logits = reference(ids[None, :-1]).logits[0].float()
            yield from torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    probes = {"limits": limits, "memory": memory, "likelihood": likelihood}
    parser.add_argument("probe", choices=probes)
    parser.add_argument("model", type=Path)
    asked = parser.parse_args()
    print(json.dumps(probes[asked.probe](asked.model)))


if __name__ == "__main__":
    main()
