"""The part that takes the steps that were predicted (`bench.gpu.models`), on models of that size made on the device.

What a client sees is timed: a prompt's time to its first token, and the time between two tokens of streams that decode
together. The predictions hold for a worker that has the whole device, so the split is 100/100.
"""

from __future__ import annotations

import json
import time

from tests.engine.harness import Stream
from tests.engine.model_driver import random_prompt
from tests.gpu.check import engine as engines
from tests.gpu.check.engine import put
from tests.gpu.check.report import Skip
from tests.gpu.check.serving_parts import memory_taken
from tests.gpu.check.stage import MIB, Figures, Stage
from tests.gpu.check.verdicts import PREDICTIONS

from bench.gpu.models import CASES, CHUNK, CONFIGS, Shape, card
from e2e.lib.waiting import wait_until
from semipd_engine.contract import DType
from semipd_engine.memory.kv_size import GPU_RESERVED

DRY_SIZES = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 32}
DRY_SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 2}
DRY_CASES = {"decode 1": (Shape(1, 1, 48),), "decode 4": (Shape(4, 1, 48),), "prefill 64": (Shape(1, 64, 64),)}
STEPS, OUTPUT = 48, 1024
"""Steps that are timed once all streams decode, and tokens of each stream: the first ones decode while the prompts of
the last are computed, 64 of 2048 tokens: some six seconds of an H100."""
BLOCK_SIZE, BYTES = 16, 2


def large(stage: Stage, name: str, figures: Figures) -> None:
    """A config.json is all there is of the model; the resident makes its weights. Skips what the GPU cannot hold."""
    cases = DRY_CASES if stage.dry else CASES
    model = stage.folder / name
    model.mkdir()
    sizes = DRY_SIZES if stage.dry else {}
    (model / "config.json").write_text(json.dumps({**CONFIGS[name], **sizes}))
    position = card(name, **sizes).kv_layout(BLOCK_SIZE, BYTES).pool_bytes(1) / BLOCK_SIZE
    longest = max(shape.context for shapes in cases.values() for shape in shapes) + OUTPUT
    before = memory_taken(stage, None)
    free = room(stage, name, before)
    wanted = {case: max(shape.sequences * (shape.context + OUTPUT) for shape in cases[case]) for case in cases}
    fitting = [case for case in cases if (wanted[case] + longest) * position <= free]
    if not fitting:
        raise Skip(f"its weights leave {free / MIB:.0f} MiB of this GPU, too few for a sequence")
    pool = int((max(wanted[case] for case in fitting) + longest) * position)
    began = time.monotonic()
    with stage.engine(
        model,
        DType.AUTO,
        load_format="dummy",
        kv_cache_memory=pool,
        max_model_len=longest,
        prefill_chunk_tokens=CHUNK,
    ) as running:
        info = running.snapshot().model
        assert info is not None
        figures["seconds to the weights"] = round(time.monotonic() - began, 2)
        figures["weights, MiB"], figures["KV pool, MiB"] = info.weight_bytes // MIB, info.kv_bytes // MIB
        figures["seconds to the workers"] = round(put(running, stage.rungs.plan(100, 100)), 2)
        figures["memory taken by all, MiB"] = round((memory_taken(stage, running) - before) / MIB)
        client = running.client()
        table: list[Figures] = []
        figures["steps"] = table

        def first_token(prompt: int) -> float:
            began = time.monotonic()
            done = client.add(random_prompt(prompt, 4000, seed=prompt), 1).wait(60 * engines.patience)
            assert not done.error, done.error
            return done.times[0] - began

        def together(count: int, prompt: int) -> float | None:
            """Milliseconds of a step in which so many streams decode; None: there was none."""
            streams = [client.add(random_prompt(prompt, 4000, seed=i + 1), OUTPUT) for i in range(count)]
            wait_until(lambda: all(s.times or s.error for s in streams), 60 * engines.patience, "first tokens")
            begin = time.monotonic()
            wait_until(
                lambda: all(s.done.is_set() or sum(t >= begin for t in s.times) > STEPS for s in streams),
                60 * engines.patience,
                f"{STEPS} steps of all",
            )
            assert not any(stream.error for stream in streams), [stream.error for stream in streams]
            ms = _step_ms(streams, begin)
            for stream in streams:
                client.abort(stream)
            time.sleep(0.5)  # they leave at the next step
            return ms

        together(1, min(shape.context for shapes in cases.values() for shape in shapes))  # what is slow once
        for case in cases:
            shape = cases[case][-1]
            if case not in fitting:
                table.append({"step": case, "ms": "", "why not": "its keys and values do not fit"})
            elif shape.new == 1:
                ms = together(shape.sequences, shape.context - STEPS // 2)
                missed = "" if ms else "the first stream had ended before the last began"
                table.append({"step": case, "ms": round(ms, 3) if ms else "", "why not": missed})
            else:
                seconds = sorted(first_token(shape.context) for _ in range(3))
                table.append({"step": case, "ms": round(seconds[1] * 1000, 3), "why not": ""})


def room(stage: Stage, name: str, taken: int) -> float:
    """Bytes that the weights, and what is kept for workers, leave of the GPU."""
    if stage.dry:
        return float(1 << 30)
    import torch

    weights = json.loads(PREDICTIONS.read_text())["models"][name]["weight bytes"]
    total = torch.cuda.get_device_properties(stage.device).total_memory
    return float(total - taken - weights - GPU_RESERVED)


def _step_ms(streams: list[Stream], begin: float) -> float | None:
    """Of the steps since `begin` in which all of them decode: until the first one ends. None: there is none."""
    end = min(stream.times[-1] for stream in streams)
    spans = [[t for t in stream.times if begin <= t <= end] for stream in streams]
    each = sorted((span[-1] - span[0]) / (len(span) - 1) for span in spans if len(span) > 1)
    return each[len(each) // 2] * 1000 if each else None
