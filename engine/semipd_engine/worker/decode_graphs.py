"""Decode steps as captured programs: the host starts one thing, where it would queue a few hundred kernels by name.

There is a program for each of a few batch sizes. It reads its inputs where they lay at its capture, has buffers of its
own, and ends with a token for each row, put where the next step's program takes its rows' tokens from, each from the
place that it had: so that one can be queued before the host knows them (`captured_steps`). Rows that want more of their
logits take them from there. A step of fewer rows is padded to the next size: a padding row is a sequence of one token
that writes nowhere (slot -1) and that nobody looks at, so it changes no other row. Larger batches, chunks of prompts
and rows with targets take the ordinary way.

Programs are made before a worker serves, the largest first, and share one pool of memory. They hold addresses of the
weights and the KV pool, which stay for the worker's life, so no plan, and no move of the split, makes one again: under
MPS another rung is another worker, which has its own, and where rungs are streams each has its programs (`lanes`).
**Not executed on a GPU yet**: `VARIABLE` asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from semipd_engine.contract import Phase
from semipd_engine.kernels import Kernels, ReferenceKernels
from semipd_engine.model.batch import Batch
from semipd_engine.model.decoder import Decoder
from semipd_engine.sampling.sampler import draw, finite_only, settings
from semipd_engine.worker.input_batch import InputBuffers, Ints, host_memory
from semipd_engine.worker.servable import UnfitError

VARIABLE = "SEMIPD_GPU_GRAPHS"
"""Of the environment: ``1`` for decode steps in CUDA graphs, once they have proved themselves at decode's start."""
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Rows of a program: so close together that padding costs a step of few rows next to nothing."""

Queue = Callable[[], object]
"""Queues work on the device, without waiting for it."""
Capture = Callable[[Queue], Queue]
"""Makes of a function one that queues the same work on the same memory, by one call. It runs the function at least once
before, since what is made at a first use cannot be captured."""


@dataclass(frozen=True)
class _Program:
    replay: Queue
    queue: Queue
    """The same work, kernel by kernel."""
    logits: Tensor
    """[size, vocab_size]: of the last of either."""
    tokens: Tensor
    """int32 [size]: as its rows draw, `NOT_FINITE` of those whose logits are no numbers."""


@dataclass(frozen=True)
class Started:
    """A step that is queued."""

    logits: Tensor
    """float32 [rows, vocab_size], valid until the next step is queued."""
    tokens: Callable[[], list[int]]
    """Waits for it. Valid until the next but one is queued."""


class DecodeGraphs:
    def __init__(
        self,
        decoder: Decoder,
        kernels: Kernels,
        device: torch.device,
        most_blocks: int,
        capture: Capture,
        sizes: Iterable[int] = SIZES,
    ) -> None:
        """`most_blocks`: width of the block tables. Captures all; writes no key and no value. Raises `UnfitError`
        (WrongGraphs) where that cannot be, for want of memory, too."""
        self._buffers, workspaces = InputBuffers(device, ahead=True), decoder.workspaces()
        nobody, sizes = _nobody(most_blocks), sorted(sizes, reverse=True)
        self._deliveries = cycle([_Delivery(device, sizes[0]) for _ in range(2)])
        # Of the last step, whatever its size: those of the others are its beginning.
        latest = self._buffers.put(padded(nobody, sizes[0]))["token_ids"]

        def program(size: int) -> _Program:
            # It knows the decoder, not this object: that would be a circle, and its graph's memory its collector's.
            there = self._buffers.put(padded(nobody, size))
            rows, sources = there.pop("sampled"), there.pop("sources")
            drawn = {name: there.pop(name) for name in settings([])}
            batch = Batch(**there, visible=len(rows))
            body, head = workspaces
            tokens = torch.zeros(size, dtype=torch.int32, device=device)

            def queue() -> Tensor:
                fed = replace(batch, token_ids=latest.index_select(0, sources))
                logits = decoder.logits(decoder.forward(fed, body), rows, head)
                tokens.copy_(finite_only(draw(logits, drawn, kernels), logits))
                torch.clamp(tokens, min=0, out=batch.token_ids)  # where there is none nobody will look: the step failed
                return logits

            logits = queue()
            return _Program(capture(queue), queue, logits, tokens)

        try:
            with torch.inference_mode():
                # The largest first: buffers and pool are then as large as they get, and nothing moves any more.
                self._programs = {size: program(size) for size in sizes}
        except Exception as error:
            raise wrong_graphs(f"a decode step cannot be captured: {type(error).__name__}: {error}") from error
        self._sizes = sorted(self._programs)

    def fits(self, rows: int) -> bool:
        return rows <= self._sizes[-1]

    def start(self, inputs: Mapping[str, Ints]) -> Started:
        """Queue a step whose rows are all decode rows, as `InputBatch.arrays` and `settings` give it; or, behind one of
        the same rows and more, as `InputBatch.following` does: its tokens are then of the step before."""
        rows, program = self._put(inputs)
        program.replay()
        return Started(program.logits[:rows], next(self._deliveries).send(program.tokens[:rows]))

    def differs(self, inputs: Mapping[str, Ints]) -> bool:
        """Does the program of this step give other bits than its kernels one by one?"""
        rows, program = self._put(inputs)
        program.queue()
        logits, tokens = program.logits.clone(), program.tokens.clone()
        program.logits.fill_(float("nan"))  # a program that does nothing leaves no right numbers behind
        program.tokens.fill_(-2)
        self.start(inputs)
        return not (
            torch.equal(logits[:rows], program.logits[:rows]) and torch.equal(tokens[:rows], program.tokens[:rows])
        )

    def _put(self, inputs: Mapping[str, Ints]) -> tuple[int, _Program]:
        rows = len(inputs["positions"])
        size = next(size for size in self._sizes if size >= rows)
        self._buffers.put(padded(inputs, size))
        return rows, self._programs[size]


class _Delivery:
    """A step's tokens on their way to the host: copied behind it, with an event behind the copy. That is what the host
    waits for, so not for what is queued after it."""

    def __init__(self, device: torch.device, most: int) -> None:
        there = device.type == "cuda"
        self._numbers, self._host = host_memory(most, pinned=there)
        self._event = torch.cuda.Event() if there else None  # type: ignore[no-untyped-call]

    def send(self, tokens: Tensor) -> Callable[[], list[int]]:
        event, rows = self._event, len(tokens)
        self._host[:rows].copy_(tokens, non_blocking=True)
        if event is not None:
            event.record()

        def arrived() -> list[int]:
            if event is not None:
                event.synchronize()
            numbers: list[int] = self._numbers[:rows].tolist()
            return numbers

        return arrived


def wrong_graphs(what: str) -> UnfitError:
    return UnfitError("WrongGraphs", f"{what}; without {VARIABLE} the worker serves")


def asked_for(phase: Phase, environment: Mapping[str, str] = os.environ) -> bool:
    """By the worker of this phase? Prefill's has no decode steps, and its programs' memory would be nobody's."""
    return phase is Phase.DECODE and environment.get(VARIABLE, "") == "1"


def cannot_capture(kernels: Kernels) -> str:
    """Why a decode step cannot be one program with these kernels; empty: it can, of any model."""
    if kernels.name == ReferenceKernels().name:
        return "the plain torch kernels ask the device for lengths in the middle of a step"
    return ""


def _nobody(most_blocks: int) -> dict[str, Ints]:
    """A step without a row."""
    empty = np.zeros(0, np.int32)
    found = dict.fromkeys(("token_ids", "positions", "slot_mapping", "seq_lens"), empty)
    return found | {"block_tables": np.zeros((0, most_blocks), np.int32)}


def padded(inputs: Mapping[str, Ints], size: int) -> dict[str, Ints]:
    """The same step of decode rows with `size` of them. A row more reads the first position of block 0, whoever has it,
    and writes nothing. Rows that say nothing of how they draw are greedy.

    In the middle lies what changes from one step to the next of the same rows, and behind it the tables, to which
    blocks may be added meanwhile: so that it is one copy."""
    rows = len(inputs["positions"])
    more = np.zeros(size - rows, np.int32)

    def longer(name: str, fill: int = 0) -> Ints:
        return np.concatenate((inputs[name], more + np.int32(fill)))

    changing = {
        "positions": longer("positions"),
        "slot_mapping": longer("slot_mapping", -1),
        "seq_lens": longer("seq_lens", 1),
        "sources": longer("sources") if "sources" in inputs else np.arange(size, dtype=np.int32),
    }
    for name, values in settings([]).items():
        given = inputs.get(name, np.zeros((rows, *values.shape[1:]), np.int32))
        changing[name] = np.concatenate((given, np.zeros((size - rows, *values.shape[1:]), np.int32)))
    if (tables := inputs.get("block_tables")) is not None:
        changing["block_tables"] = np.concatenate((tables, np.zeros((size - rows, tables.shape[1]), np.int32)))
    if "token_ids" not in inputs:
        return changing
    return {
        "token_ids": longer("token_ids"),
        "query_start_loc": np.arange(size + 1, dtype=np.int32),
        "sampled": np.arange(size, dtype=np.int32),
        **changing,
    }


class CudaCapture:
    """CUDA graphs that share one pool of memory: what is captured may not wait for the device, and what it allocates
    stays the graphs' own. Source: torch.cuda.graph.

    It holds the last of them: torch refuses a pool whose graphs are all gone, as those of the gate are when those that
    serve are made. And all are made on one stream: cuBLAS has a workspace for each that it has seen, tens of MiB.
    """

    def __init__(self, stream: torch.cuda.Stream | None = None) -> None:
        """`stream`: on whose SMs the programs will run; None: one of its own, with all that this process may use."""
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._last: torch.cuda.CUDAGraph | None = None

    def __call__(self, queue: Queue) -> Queue:
        aside = self._stream
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            queue()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Another thread of this process may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"):
            queue()
        self._last = graph
        replay: Queue = graph.replay
        return replay
