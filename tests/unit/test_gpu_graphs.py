"""A decode step as a program, traced on a GPU that is not there: nothing in it waits or crosses, and all sizes share
their memory. What the programs compute is tested where there are numbers (`tests/engine/test_decode_graphs.py`)."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from bench.gpu.models import CONTEXT, Shape, card
from bench.gpu.step_trace import BLOCK, GREEDY, FakeWorker
from bench.gpu.witnesses import Trace
from semipd_engine.contract import Phase
from semipd_engine.ipc.steps import Continuation, Row, StepPlan
from semipd_engine.ipc.tokens import Sampling, pack_bias
from semipd_engine.kernels import ReferenceKernels
from semipd_engine.kernels.gpu import TritonKernels
from semipd_engine.worker.decode_graphs import SIZES, CudaCapture, Queue, asked_for, cannot_capture, padded
from semipd_engine.worker.servable import UnfitError

pytestmark = pytest.mark.unit

LAYERS = 2
DRAWN = Sampling(temperature=0.7, top_p=0.9, max_tokens=99)
DENSE = {"8B": {}, "1B": {}, "DeepSeek-V2-Lite": {"first_k_dense_replace": LAYERS}}


@dataclass
class Watched:
    """A capture whose programs are the step's own function; notes what of a trace falls into a replay."""

    worker: list[FakeWorker] = field(default_factory=list)
    made: int = 0
    waits: list[str] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)
    kernels: int = 0
    begun: list[int] = field(default_factory=list)
    """How often the host had waited for the device when each replay was queued."""

    def __call__(self, queue: Queue) -> Queue:
        self.made += 1
        queue()

        def replay() -> None:
            record: Trace = self.worker[0].record
            waits, uploads, launches = len(record.waits), len(record.uploads), len(record.launches)
            fetched = len(record.fetched)
            self.begun.append(waits)
            queue()
            self.fetched += record.fetched[fetched:]
            self.waits += record.waits[waits:]
            self.uploads += record.uploads[uploads:]
            self.kernels += len(record.launches) - launches

        return replay


def watched(model: str, **changes: object) -> tuple[FakeWorker, Watched]:
    seen = Watched()
    worker = FakeWorker(card(model, num_hidden_layers=LAYERS, **changes), TritonKernels(132), 4096, capture=seen)
    seen.worker.append(worker)
    return worker, seen


def rows(count: int, sampling: Sampling = GREEDY) -> list[Row]:
    table = list(range(CONTEXT // BLOCK + 1))
    return [Row(i, [1], CONTEXT - 9, table, outputs="last", sampling=sampling, history=[1]) for i in range(count)]


@pytest.mark.parametrize("batch", [1, 5, 64])
@pytest.mark.parametrize("model", DENSE)
def test_a_program_waits_for_nothing_and_holds_all_of_a_step(model: str, batch: int) -> None:
    worker, seen = watched(model, **DENSE[model])
    for sampling in (GREEDY, DRAWN):
        trace = worker.step(Shape(batch, 1, CONTEXT), sampling)
        assert (seen.made, seen.waits, seen.uploads, seen.fetched) == (len(SIZES), [], [], [])
        assert len(trace.uploads) == 1, "inputs, and how rows draw: in one copy"
        assert (trace.fetched, trace.events, trace.waits) == ([4 * batch], [1], ["event"]), "tokens: in one, too"
        assert len(trace.launches) == seen.kernels > 8 * LAYERS, "nothing is queued beside"
        seen.kernels = 0


def test_a_step_is_queued_before_the_host_waits_for_the_tokens_of_the_one_before() -> None:
    """And only what changes with it crosses: neither the tokens, which are there, nor the tables."""
    worker, seen = watched("8B")
    trace = worker.plan(StepPlan(1, 4, rows(5, DRAWN)))
    assert seen.begun == [0, 0, 1, 2] and trace.waits == ["event"] * 4
    assert trace.events == [1, 2, 3, 4] and trace.fetched == [4 * 5] * 4
    first, *later = trace.uploads
    assert later == [later[0]] * 3 and later[0] < 5000 < first


def test_what_continues_a_plan_is_queued_before_the_host_waits_for_its_last_tokens() -> None:
    """Where tables have grown they cross with that step; nothing waits for what core says."""
    worker, seen = watched("8B")
    more = Continuation(4, 3, [(i, [i]) for i in range(5)])
    trace = worker.plan(StepPlan(1, 3, rows(5, DRAWN)), lambda seq: more if seq == 4 else None)
    assert seen.begun == [0, 0, 1, 2, 3, 4] and trace.waits == ["event"] * 6
    first, *later = trace.uploads
    assert later[0] == later[1] == later[3] == later[4] < 5000 < later[2] < first


def test_a_plan_is_over_when_the_step_that_has_begun_is() -> None:
    """All rows have stopped, at the token that all traces tell: who computes once more is waited for."""
    worker, seen = watched("8B")
    trace = worker.plan(StepPlan(1, 8, rows(2, replace(GREEDY, stop_token_ids=(0,)))))
    assert seen.begun == [0, 0] and trace.waits == ["event", "synchronize"]


@pytest.mark.parametrize(
    "asked",
    [
        {"logprobs": 0},
        {"logit_bias": pack_bias({5: 1.0})},
        {"repetition_penalty": 1.1},
        {"stop_token_ids": (77,), "min_tokens": 9},
    ],
    ids=str,
)
def test_who_wants_more_of_the_logits_has_them_before_the_next_step(asked: dict[str, Any]) -> None:
    worker, seen = watched("8B")
    trace = worker.plan(StepPlan(1, 3, [*rows(2), *rows(1, replace(GREEDY, **asked))]))
    waits = len(trace.waits) // 3
    assert waits >= 1 and seen.begun == [0, waits, 2 * waits]


def test_all_sizes_share_the_memory_of_the_largest() -> None:
    plain = FakeWorker(card("8B", num_hidden_layers=LAYERS), TritonKernels(132), 4096)
    worker, _ = watched("8B")
    shape = Shape(64, 1, CONTEXT)
    more = worker.step(shape).live - plain.step(shape).live
    assert 0 <= more < 64 * 128256 * 4 + (8 << 20), "one set of buffers, with its logits, whatever number of sizes"


def test_a_larger_batch_and_a_prompt_take_the_ordinary_way() -> None:
    worker, seen = watched("8B")
    assert len(worker.step(Shape(65, 1, 256)).layers()) == len(worker.step(Shape(1, 64, 64)).layers()) == LAYERS
    assert seen.kernels == 0


def test_only_decodes_worker_makes_programs_and_only_where_they_are_asked_for() -> None:
    asked = {"SEMIPD_GPU_GRAPHS": "1"}
    assert [phase for phase in Phase if asked_for(phase, asked)] == [Phase.DECODE]
    assert not any(asked_for(phase, {}) for phase in Phase)


def test_what_cannot_be_captured_is_said() -> None:
    assert cannot_capture(TritonKernels(132)) == ""
    assert "plain torch" in cannot_capture(ReferenceKernels())


def test_experts_are_part_of_the_program() -> None:
    """Whom a row goes to stays on the device."""
    worker, seen = watched("DeepSeek-V2-Lite")
    trace = worker.step(Shape(4, 1, 256))
    assert seen.waits == [] and seen.kernels > 15 * LAYERS
    assert trace.waits == ["event"] and len(trace.uploads) == 1


def test_padding_is_a_sequence_of_its_own_that_writes_nowhere() -> None:
    one = np.array([7], np.int32)
    inputs = {"token_ids": one, "positions": one + 1, "slot_mapping": one + 2, "seq_lens": one + 3}
    inputs |= {"block_tables": np.array([[4, 9]], np.int32), "top_k": one + 4}
    found = {name: values.tolist() for name, values in padded(inputs, 3).items()}
    assert found == {
        "token_ids": [7, 0, 0],
        "query_start_loc": [0, 1, 2, 3],
        "sampled": [0, 1, 2],
        "positions": [8, 0, 0],
        "slot_mapping": [9, -1, -1],
        "seq_lens": [10, 1, 1],
        "sources": [0, 1, 2],
        "temperature": [0, 0, 0],
        "top_k": [11, 0, 0],
        "top_p": [0, 0, 0],
        "min_p": [0, 0, 0],
        "uniform": [[0, 0]] * 3,
        "block_tables": [[4, 9], [0, 0], [0, 0]],
    }
    following = [name for name in found if name not in ("token_ids", "query_start_loc", "sampled", "block_tables")]
    del inputs["token_ids"]
    assert list(padded(inputs, 3)) == [*following, "block_tables"], "neighbours among all"
    del inputs["block_tables"]
    assert list(padded(inputs, 3)) == following
    assert {values.dtype for values in padded(inputs, 3).values()} == {np.dtype(np.int32)}


class Allocator:
    """What torch's does about the pools of graphs: an id is as good as new until its first graph, and no good any more
    once its last one is gone, for what the graphs' streams hold of its memory outlives them. Source: PyTorch,
    CUDACachingAllocator.cpp, create_or_incref_pool."""

    def __init__(self) -> None:
        self.graphs_of: dict[int, int] = {}
        self.streams: set[object] = set()
        """On which something was queued or captured."""

    def graph_pool_handle(self) -> int:
        return 7

    def CUDAGraph(self) -> Any:
        return _Graph()

    @contextlib.contextmanager
    def graph(self, graph: _Graph, pool: int, capture_error_mode: str, stream: _Stream | None = None) -> Iterator[None]:
        self.streams.add(stream)
        assert self.graphs_of.get(pool, 1) > 0, "use_count > 0"
        self.graphs_of[pool] = self.graphs_of.get(pool, 0) + 1
        finalize(graph, self._gone, pool)
        yield

    def _gone(self, pool: int) -> None:
        self.graphs_of[pool] -= 1


class _Graph:
    def replay(self) -> None: ...


class _Stream:
    def wait_stream(self, other: object) -> None: ...


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    allocator = Allocator()

    def on(stream: _Stream) -> contextlib.nullcontext[None]:
        allocator.streams.add(stream)
        return contextlib.nullcontext()

    for name in ("graph_pool_handle", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(allocator, name))
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return allocator


def test_all_graphs_are_made_on_one_stream(allocator: Allocator) -> None:
    """On each that cuBLAS sees it leaves a workspace for good: a dozen of them were half a gigabyte of a worker."""
    capture = CudaCapture()
    for _ in range(4):
        capture(lambda: None)
    assert len(allocator.streams) == 1 and None not in allocator.streams


def test_the_gates_graphs_are_gone_before_those_that_serve_are_made(allocator: Allocator) -> None:
    """Their pool lives on all the same."""
    capture = CudaCapture()
    gates = [capture(lambda: None) for _ in range(3)]
    assert allocator.graphs_of == {7: 3}
    del gates
    gc.collect()
    assert allocator.graphs_of == {7: 1}
    capture(lambda: None)()


def test_programs_go_with_whom_they_served() -> None:
    """Without a round of the garbage collector, which may come in the middle of the next capture."""
    worker, _ = watched("1B")
    runner = worker._runner
    graphs = runner.graphs
    assert graphs is not None
    gone: list[bool] = []
    finalize(graphs, gone.append, True)
    gc.collect()
    gc.disable()
    try:
        runner.graphs = None
        del graphs
        assert gone == [True]
    finally:
        gc.enable()


def test_what_cannot_be_captured_when_it_is_to_serve_has_its_name_too() -> None:
    """Memory may be short only then: its programs are larger than the gate's."""

    def capture(queue: Queue) -> Queue:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UnfitError, match="out of memory; without SEMIPD_GPU_GRAPHS") as refused:
        FakeWorker(card("1B", num_hidden_layers=LAYERS), TritonKernels(132), 256, capture=capture)
    assert refused.value.reason == "WrongGraphs"
