"""The part that serves one alternating trace in four modes: one process for both phases (its steps swept), both phases
on the whole device, fixed splits, and the split that the product chooses while it serves (Auto).

One engine serves all of them, one after the other, so weights, kernels and pool are the same. Auto is the agent's own
controller, fed once a second with the engine's snapshots as the agent feeds it; only MPS is this check's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.engine.harness import ApiClient, Engine, Stream
from tests.engine.model_driver import random_prompt
from tests.gpu.check import engine as engines
from tests.gpu.check.engine import put
from tests.gpu.check.goodput import Alone, Asked, Lengths, Served, fitting, summary, trace
from tests.gpu.check.large_parts import BLOCK_SIZE, BYTES, DRY_SIZES, room
from tests.gpu.check.report import Skip
from tests.gpu.check.rungs import Rungs
from tests.gpu.check.serving_parts import memory_taken
from tests.gpu.check.stage import Figures, Stage

from bench.gpu.models import CHUNK, CONFIGS, card
from e2e.lib.waiting import wait_until
from semipd_agent.clock import SystemClock
from semipd_agent.contract import SLO, AgentConfig, Mode, PartitionConfig
from semipd_agent.contract import Enforcement as Enforced
from semipd_agent.control import SplitController
from semipd_agent.partitioner.base import Passive
from semipd_agent.partitioner.mps import ladder
from semipd_engine.contract import DType, PartitionPlan, Split

LENGTHS, DRY_LENGTHS = Lengths((CHUNK, 8), (128, 128)), Lengths((96, 4), (16, 12))
TURNS, DRY_TURNS = 4, 2
TURN_SECONDS, DRY_TURN_SECONDS, LEAST_TURN = 8.0, 1.0, 0.5
MIXED, DRY_MIXED = (512, 2048), (64,)
"""Tokens of one process's steps."""
FIXED = ((40, 80), (60, 60), (80, 40))
SEQUENCES = 128
WHOLE = "both on the whole device"
AUTO, ONE = "Auto", "one process"


def goodput(stage: Stage, figures: Figures) -> None:
    name, pool, longest = _model(stage)
    folder = stage.folder / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIGS[name], **(DRY_SIZES if stage.dry else {})}))
    figures["model"] = f"{name}, weights made on the device"
    with stage.engine(
        folder,
        DType.AUTO,
        load_format="dummy",
        kv_cache_memory=pool,
        max_model_len=longest,
        max_num_seqs=SEQUENCES,
        prefill_chunk_tokens=CHUNK,
    ) as running:
        put(running, stage.rungs.plan(100, 100))
        client, lengths = running.client(), DRY_LENGTHS if stage.dry else LENGTHS
        alone = _alone(client, lengths)
        targets = {"TTFT": alone.ttft, "TPOT": alone.tpot}
        figures["targets, ms"] = ", ".join(f"{name} {seconds * 1000:.4g}" for name, seconds in targets.items())
        modes = _modes(stage)
        turns = DRY_TURNS if stage.dry else TURNS
        most = DRY_TURN_SECONDS if stage.dry else TURN_SECONDS
        seconds = fitting(alone, turns, len(modes) + 1, stage.left, most)  # Auto serves it twice
        if seconds < LEAST_TURN:
            raise Skip(f"{stage.left:.0f} s are left, too few to serve the trace {len(modes) + 1} times")
        asked = trace(alone, lengths, turns, seconds)
        figures["trace"] = f"{turns} turns of {seconds:.2f} s, {len(asked)} requests"
        table: list[Figures] = []
        figures["goodput by mode"] = table
        for mode, plan in modes:
            if plan is not None:
                put(running, plan)
                table.append(summary(mode, _serve(running, client, asked, alone), alone, turns * seconds))
                continue
            with _auto(running, stage.rungs, alone, 0.2 if stage.dry else 1.0) as controller:
                for which in (f"{AUTO}, as it begins", AUTO):
                    served = _serve(running, client, asked, alone)
                    table.append(summary(which, served, alone, turns * seconds) | {"moves so far": controller.changes})
                figures["Auto's split at the end"] = str(controller.requested)
        assert running.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}


def _model(stage: Stage) -> tuple[str, int, int]:
    """The 8 B where the GPU has room for it and its pool, else the 1 B; the pool's bytes; the longest sequence."""
    lengths = DRY_LENGTHS if stage.dry else LENGTHS
    longest = max(sum(lengths.document), sum(lengths.chat)) + 16
    before = memory_taken(stage, None)
    for name in ("8B", "1B"):
        layout = card(name, **(DRY_SIZES if stage.dry else {})).kv_layout(BLOCK_SIZE, BYTES)
        pool = layout.pool_bytes(SEQUENCES * -(-longest // BLOCK_SIZE) // 2)
        if pool <= room(stage, name, before):
            break
    return name, pool, longest


def _modes(stage: Stage) -> list[tuple[str, PartitionPlan | None]]:
    """None: Auto. What is worth most comes first: time may be short."""
    whole = stage.rungs.plan(100, 100)
    one = [(f"{ONE}, steps of {tokens}", _aggregated(whole, tokens)) for tokens in (DRY_MIXED if stage.dry else MIXED)]
    fixed = [] if stage.dry else [("fixed {}/{}".format(*split), stage.rungs.plan(*split)) for split in FIXED]
    return [*one[:1], (WHOLE, whole), (AUTO, None), *one[1:], *fixed]


def _aggregated(whole: PartitionPlan, tokens: int) -> PartitionPlan:
    return whole.model_copy(update={"aggregated": True, "split": Split(prefill=100, decode=100, mixed_tokens=tokens)})


def _alone(client: ApiClient, lengths: Lengths) -> Alone:
    def once(prompt: int, output: int, seed: int) -> Stream:
        done = client.add(random_prompt(prompt, 4000, seed=seed), output).wait(60 * engines.patience)
        assert done.error is None, done.error
        return done

    firsts, steps = list[float](), list[float]()
    once(*lengths.document, 1)  # what is slow once
    for seed in range(2, 5):
        began = time.monotonic()
        firsts.append(once(lengths.document[0], 1, seed).times[0] - began)
        times = once(*lengths.chat, seed).times
        steps.append((times[-1] - times[0]) / (len(times) - 1))
    return Alone(sorted(firsts)[1], sorted(steps)[1])


def _serve(running: Engine, client: ApiClient, asked: Sequence[Asked], alone: Alone) -> list[Served]:
    """Send the trace; what has not ended some time after its last request is too late in any case."""
    prompts = [random_prompt(one.prompt, 4000, seed=number + 100) for number, one in enumerate(asked)]
    begin, sent = time.monotonic(), list[tuple[Stream, float]]()
    for one, prompt in zip(asked, prompts, strict=True):
        time.sleep(max(0.0, begin + one.at - time.monotonic()))
        sent.append((client.add(prompt, one.output), begin + one.at))
    end = time.monotonic() + alone.ttft + 2 * alone.tpot * max(one.output for one in asked)
    while time.monotonic() < end and not all(stream.done.is_set() for stream, _ in sent):
        time.sleep(0.01)
    served = [Served.of(stream, at) for stream, at in sent]
    for stream, _ in sent:
        if not stream.done.is_set():
            client.abort(stream)
    wait_until(lambda: running.snapshot().blocks.used == 0, 60 * engines.patience, "an engine without requests")
    return served


class RungsOfCheck(Passive):
    """What this check found of MPS, as the agent's controller sees a device."""

    name = "mps"
    enforcement = Enforced.SPATIAL_CAP
    rungs = ladder.LADDER
    prepares = True
    settle_seconds = 180.0

    def __init__(self, rungs: Rungs) -> None:
        self._rungs = rungs

    def quantize(self, want: Split) -> Split:
        return ladder.quantize(want)

    def plan(self, split: Split) -> PartitionPlan:
        return self._rungs.plan(split.prefill, split.decode)


@contextmanager
def _auto(running: Engine, rungs: Rungs, alone: Alone, period: float) -> Iterator[SplitController]:
    """The agent's controller, at work until the end."""
    slo = SLO(ttft_milliseconds=max(1, round(alone.ttft * 1000)), tpot_milliseconds=max(1, round(alone.tpot * 1000)))
    config = AgentConfig(slo=slo, partition=PartitionConfig(mode=Mode.AUTO))
    controller = SplitController(lambda mode: RungsOfCheck(rungs), config, SystemClock())
    over, failed = threading.Event(), list[Exception]()

    def drive() -> None:
        try:
            while not over.wait(period):
                controller.observe(running.snapshot(controller.pilot.window.cursor))
                if (message := controller.pending()) is not None:
                    running.control(message)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        yield controller
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]
