"""Parts of the check that weigh and time an engine under load: its workers' memory, its switches, prefill's share."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.engine import proc
from tests.engine.harness import Engine
from tests.gpu.check import engine as engines
from tests.gpu.check.engine import Traffic, put
from tests.gpu.check.stage import MIB, Figures, Stage

from e2e.lib.waiting import wait_until
from semipd_engine.contract import DType, PartitionPlan, WorkerState

MOVES, MOVES_SECONDS = 20, 60.0
"""To and fro, half of them between workers that are there."""
SHARES, DRY_SHARES = (20, 40, 60, 100), (100, 100)
"""In a dry run two rounds with the same workers: each costs seconds to start."""


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
    # In a dry run the moves below are enough to start a worker under load.
    asked = [("no switch", first), *([] if stage.dry else [("cold", cold)]), ("warm", (100, 100))]
    table: list[Figures] = []
    figures["switches under load"] = table
    traffic = _traffic(stage, running, every=1.0)
    try:
        _flowing(traffic)
        for what, to in asked:
            split = to if to != first else None
            began = time.monotonic()
            prepared = put(running, stage.rungs.plan(*split)) if split else 0.0
            time.sleep(window)
            row = {"switch": "{}: {}/{}".format(what, *to), "seconds to effect": round(prepared, 3)}
            table.append(row | _gaps(traffic, began))
        figures["moves, one after the other"] = moves(stage, running, traffic)
    finally:
        wrong = traffic.stop()
    assert not wrong, wrong
    assert running.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}


def moves(stage: Stage, running: Engine, traffic: Traffic) -> list[Figures]:
    """To and fro between 100/100, whose workers are always there, and a split whose workers are started for it: no move
    may cost a stream more than one step. As many as `MOVES_SECONDS` hold."""
    first, _ = stage.moves
    seen: dict[str, list[tuple[float, dict[str, float]]]] = {"cold": [], "warm": []}
    begin = time.monotonic()
    for _ in range(1 if stage.dry else MOVES // 2):
        if seen["cold"] and time.monotonic() - begin > MOVES_SECONDS * engines.patience:
            break
        for kind, split in (("cold", first), ("warm", (100, 100))):
            began = time.monotonic()
            took = put(running, stage.rungs.plan(*split))
            time.sleep(0.05 if stage.dry else 0.3)
            seen[kind].append((took, _gaps(traffic, began)))
    return [
        {
            "move": kind,
            "moves": len(found),
            "seconds to effect, median": round(sorted(took for took, _ in found)[len(found) // 2], 4),
            "slowest": round(max(took for took, _ in found), 4),
            "a step ms, median": sorted(gaps["median ms"] for _, gaps in found)[len(found) // 2],
            "worst gap ms": max(gaps["longest ms"] for _, gaps in found),
        }
        for kind, found in seen.items()
    ]


def streams_beside(
    stage: Stage, running: Engine, plans: Sequence[PartitionPlan], count: int
) -> tuple[list[float], dict[str, float]]:
    """Moves in turn between plans, under load, after a first one: seconds to effect of each, and the gaps between two
    tokens of a stream meanwhile. Nothing may go wrong."""
    put(running, plans[0])
    traffic, seen = _traffic(stage, running, every=1.0), list[float]()
    try:
        _flowing(traffic)
        began = time.monotonic()
        for number in range(count):
            seen.append(put(running, plans[(number + 1) % len(plans)]))
            time.sleep(0.3)
        gaps = _gaps(traffic, began)
    finally:
        wrong = traffic.stop()
    assert not wrong, wrong
    return seen, gaps


def shares(stage: Stage, figures: Figures) -> None:
    """Streams decode on the whole device while prompts of 512 tokens arrive: the gaps between their tokens by
    prefill's share. Where nothing limits a worker the rows are alike."""
    from semipd_engine.hub.make_model import make_model

    model = stage.folder / "small"
    make_model("tiny" if stage.dry else "small", "llama", model, progress=False)
    table: list[Figures] = []
    figures["a token's gap beside prompts"] = table
    with stage.engine(model, DType.AUTO) as running:
        for share in DRY_SHARES if stage.dry else SHARES:
            put(running, stage.rungs.plan(share, 100))
            traffic = _traffic(stage, running, every=0.2)
            try:
                _flowing(traffic)
                began = time.monotonic()
                time.sleep(0.5 if stage.dry else 5.0)
                table.append({"prefill %": share} | _gaps(traffic, began))
            finally:
                wrong = traffic.stop()
            assert not wrong, wrong


def _traffic(stage: Stage, running: Engine, every: float) -> Traffic:
    """In a dry run so little that a worker that starts beside it has most of a core."""
    streams, prompt = (2, 64) if stage.dry else (8, 512)
    return Traffic(running, streams, tokens=2000, prompt_tokens=prompt, every=every)


def _flowing(traffic: Traffic) -> None:
    patience = 60 * engines.patience
    wait_until(lambda: sum(bool(s.tokens) for s in traffic.decoding) >= 2, patience, "running streams")


def _gaps(traffic: Traffic, began: float) -> dict[str, float]:
    """Of the streams since `began`, once there is one."""
    patience = 60 * engines.patience
    return wait_until(lambda: traffic.gaps(began, time.monotonic()), patience, "two tokens of a stream")
