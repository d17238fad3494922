"""Parts of the check that compare tokens with transformers': undisturbed, and while workers are ended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engine.harness import Engine, Stream
from tests.engine.model_driver import random_prompt
from tests.gpu.check import engine as engines
from tests.gpu.check.engine import put, settled
from tests.gpu.check.stage import Figures, Stage

from e2e.lib.reference import Reference
from e2e.lib.waiting import wait_until
from semipd_engine.contract import DType

LENGTHS = (1, 15, 16, 17, 33, 64, 100, 200)
TOKENS = 48
Answers = dict[tuple[int, ...], list[int]]
"""Tokens by prompt."""


def exact(stage: Stage, model: Path, figures: Figures) -> None:
    with same_tokens(stage, model, figures):
        pass


@contextmanager
def same_tokens(stage: Stage, model: Path, figures: Figures) -> Iterator[tuple[Engine, Answers]]:
    """An engine that has answered as transformers does, and the answers by prompt."""
    expected = reference_tokens(stage, model)
    with stage.engine(model, DType.FLOAT32, prefill_chunk_tokens=32) as running:
        put(running, stage.rungs.plan(*stage.split))
        figures["workers"] = [
            {"phase": w.phase, "percent": w.percent, "SMs": w.sm_count, "pid": w.pid} for w in settled(running)
        ]
        client = running.client()
        figures["tokens compared"] = compare([client.add(list(p), TOKENS) for p in expected], expected)
        yield running, expected


def reference_tokens(stage: Stage, model: Path) -> Answers:
    import torch

    from semipd_engine.model.device import set_precision

    set_precision(torch.float32)
    reference = Reference(model, stage.device)
    prompts = [random_prompt(length, 4096, seed=length) for length in LENGTHS]
    return {tuple(prompt): reference.greedy(prompt, TOKENS)[0] for prompt in prompts}


def kills(stage: Stage, figures: Figures) -> None:
    table: list[Figures] = []
    with same_tokens(stage, stage.model("qwen2"), figures) as (running, expected):
        figures["after each end"] = table
        client = running.client()
        workers = settled(running)
        ends = [("kill -9", worker) for worker in (workers[:1] if stage.dry else workers)]
        if stage.rungs.counts:  # the last word: the one that the agent uses
            ends.append(("terminate_client", next(w for w in workers if w.routed)))
        for how, victim in ends:
            pid = next(w.pid for w in settled(running) if (w.phase, w.percent) == (victim.phase, victim.percent))
            streams = [client.add(list(prompt), TOKENS) for prompt in expected]
            wait_until(
                lambda streams=streams: any(stream.tokens for stream in streams),
                60 * engines.patience,
                "running streams",
            )
            row: Figures = {"end": how, "of": f"{victim.phase} {victim.percent} %"}
            table.append(row)
            began = time.monotonic()
            if how == "kill -9":
                os.kill(pid, 9)
            else:
                row["MPS server then"] = stage.rungs.terminate(pid)
            row["tokens equal"] = compare(streams, expected)
            wait_until(
                lambda pid=pid: pid not in [w.pid for w in running.snapshot().workers],
                30 * engines.patience,
                "its death",
            )
            settled(running)
            row["seconds to full strength"] = round(time.monotonic() - began, 2)
            row["MPS server"] = stage.rungs.server_status()


def compare(streams: list[Stream], expected: Answers) -> int:
    """Tokens that were compared. Raises AssertionError with the first difference."""
    count = 0
    for stream in streams:
        wanted = expected[tuple(stream.prompt)]
        tokens = stream.wait(90 * engines.patience).tokens
        assert stream.error is None, stream.error
        if tokens != wanted:
            at = next(
                (i for i, pair in enumerate(zip(tokens, wanted, strict=False)) if pair[0] != pair[1]), len(tokens)
            )
            raise AssertionError(f"a prompt of {len(stream.prompt)} tokens differs from transformers at token {at}")
        count += len(tokens)
    return count
