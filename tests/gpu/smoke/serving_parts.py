"""Parts of the smoke run that weigh and time an engine: its workers' memory, a switch under load, an 8 B model."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.engine import proc
from tests.engine.harness import Engine
from tests.engine.model_driver import random_prompt
from tests.gpu.smoke import engine as engines
from tests.gpu.smoke.engine import Traffic, put
from tests.gpu.smoke.stage import MIB, Figures, Stage

from e2e.lib.waiting import wait_until
from semipd_engine.contract import DType, WorkerState

LARGE = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
"""config.json of an 8 B model."""
DRY = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 32}
DRY |= {"num_attention_heads": 8, "num_key_value_heads": 2}


def switches(stage: Stage, figures: Figures) -> None:
    """Two workers, then four: each costs its context and workspaces, and no second copy of the weights."""
    from semipd_engine.hub.make_model import make_model

    model = stage.folder / "small"
    make_model("tiny" if stage.dry else "small", "llama", model, progress=False)
    table: list[Figures] = []
    figures["memory taken, MiB"] = table

    def note(when: str, running: Engine | None) -> float:
        taken = memory_taken(stage, running) / MIB
        before = table[-1]["taken"] if table else round(taken)
        table.append({"when": when, "taken": round(taken), "more": round(taken - before)})
        return taken

    note("before", None)
    with stage.engine(model, DType.AUTO) as running:
        info = running.snapshot().model
        assert info is not None
        figures["weights, MiB"], figures["KV pool, MiB"] = info.weight_bytes // MIB, info.kv_bytes // MIB
        alone = note("resident", running)
        began = time.monotonic()
        put(running, stage.rungs.plan(100, 100))
        figures["seconds to two workers, side by side"] = round(time.monotonic() - began, 2)
        two = note("two workers (100/100)", running)
        first, _ = stage.moves
        figures["seconds to a cold partition"] = round(put(running, stage.rungs.plan(*first)), 2)
        note("its workers beside those ({}/{})".format(*first), running)
        each = (two - alone) / 2
        figures["a worker, MiB"] = round(each)
        if not stage.dry:
            weights = info.weight_bytes / MIB
            assert each < max(weights, 900), f"a worker takes {each:.0f} MiB, the weights {weights:.0f}"
        switch(stage, running, figures)


def memory_taken(stage: Stage, running: Engine | None) -> int:
    """Of the GPU as a whole; on the CPU private memory of the engine's processes."""
    if not stage.dry:
        import torch

        free, total = torch.cuda.mem_get_info(stage.device)
        return total - free
    if running is None:
        return 0
    workers = [w.pid for w in running.snapshot().workers if w.state is WorkerState.READY]
    return sum(proc.memory_bytes(pid, "Private_Dirty") for pid in (running.processes["resident"].pid, *workers))


def switch(stage: Stage, running: Engine, figures: Figures) -> None:
    """Streams run and prompts arrive all the while; gaps are between two tokens of one stream."""
    window = 1.0 if stage.dry else 6.0
    first, cold = stage.moves
    table: list[Figures] = []
    figures["switches under load"] = table
    traffic = Traffic(running, streams=2 if stage.dry else 8, tokens=2000, prompt_tokens=512, every=1.0)
    try:
        wait_until(lambda: sum(bool(s.tokens) for s in traffic.decoding) >= 2, 60 * engines.patience, "running streams")
        for what, to in (("no switch", first), ("cold", cold), ("warm", (100, 100))):
            split = to if to != first else None
            began = time.monotonic()
            prepared = put(running, stage.rungs.plan(*split)) if split else 0.0
            time.sleep(window)
            wait_until(
                lambda began=began: traffic.gaps(began, time.monotonic()),
                60 * engines.patience,
                "two tokens of a stream",
            )
            row = {"switch": "{}: {}/{}".format(what, *to), "seconds to effect": round(prepared, 3)}
            table.append(row | traffic.gaps(began, time.monotonic()))
    finally:
        wrong = traffic.stop()
    assert not wrong, wrong
    assert running.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}


def large(stage: Stage, figures: Figures) -> None:
    """A config.json is all there is of the model; the resident makes its weights on the device."""
    model = stage.folder / "large"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LARGE | (DRY if stage.dry else {})))
    before = memory_taken(stage, None)
    began = time.monotonic()
    kv_bytes = (64 if stage.dry else 4096) * MIB
    options: dict[str, Any] = {"load_format": "dummy", "kv_cache_memory": kv_bytes, "prefill_chunk_tokens": 2048}
    with stage.engine(model, DType.AUTO, **options) as running:
        info = running.snapshot().model
        assert info is not None
        figures["seconds to the weights"] = round(time.monotonic() - began, 2)
        figures["weights, MiB"] = info.weight_bytes // MIB
        figures["seconds to the workers"] = round(put(running, stage.rungs.plan(*stage.split)), 2)
        figures["memory taken by all, MiB"] = round((memory_taken(stage, running) - before) / MIB)
        client = running.client()
        table: list[Figures] = []
        figures["prompts and streams"] = table
        for prompt_tokens, streams, tokens in ((128, 1, 16), (3800, 1, 2), (128, 1, 64), (128, 16, 64)):
            began = time.monotonic()
            added = [client.add(random_prompt(prompt_tokens, 4000, seed=i + streams), tokens) for i in range(streams)]
            done = [stream.wait(60 * engines.patience) for stream in added]
            assert not any(stream.error for stream in done), [stream.error for stream in done]
            last, first = max(s.times[-1] for s in done), max(s.times[0] for s in done)
            table.append(
                {
                    "streams": streams,
                    "prompt tokens": prompt_tokens,
                    "ms to the first token": round((first - began) * 1000, 1),
                    "ms of a decode step": round((last - first) * 1000 / (tokens - 1), 2),
                }
            )
