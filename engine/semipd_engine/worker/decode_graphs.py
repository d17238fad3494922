"""Decode steps as captured programs: the host starts one thing, where it would queue a few hundred kernels by name.

There is a program for each of a few batch sizes. It reads its inputs where they lay at its capture, has buffers of its
own, and ends with the logits; drawing tokens stays outside. A step of fewer rows is padded to the next size: a padding
row is a sequence of one token that writes nowhere (slot -1) and that nobody looks at, so it changes no other row.
Larger batches, chunks of prompts and rows with targets take the ordinary way.

Programs are made before a worker serves, the largest first, and share one pool of memory. They hold addresses of the
weights and the KV pool, which stay for the worker's life, so no plan, and no move of the split, makes one again: under
MPS another rung is another worker, which has its own. **Not executed on a GPU yet**: `VARIABLE` asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semipd_engine.kernels import Kernels, ReferenceKernels
from semipd_engine.model.batch import Batch
from semipd_engine.model.decoder import Decoder
from semipd_engine.worker.input_batch import InputBuffers, Ints
from semipd_engine.worker.servable import UnfitError

VARIABLE = "SEMIPD_GPU_GRAPHS"
"""Of the environment: ``1`` for decode steps in CUDA graphs, once they have proved themselves at the worker's start."""
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


class DecodeGraphs:
    def __init__(
        self,
        decoder: Decoder,
        device: torch.device,
        most_blocks: int,
        capture: Capture,
        sizes: Iterable[int] = SIZES,
    ) -> None:
        """`most_blocks`: width of the block tables. Captures all; writes no key and no value. Raises `UnfitError`
        (WrongGraphs) where that cannot be, for want of memory, too."""
        self._buffers, workspaces = InputBuffers(device), decoder.workspaces()
        nobody = _nobody(most_blocks)

        def program(size: int) -> _Program:
            # It knows the decoder, not this object: that would be a circle, and its graph's memory its collector's.
            there = self._buffers.put(padded(nobody, size))
            rows = there.pop("sampled")
            batch = Batch(**there, visible=len(rows))
            body, head = workspaces

            def queue() -> Tensor:
                return decoder.logits(decoder.forward(batch, body), rows, head)

            logits = queue()
            return _Program(capture(queue), queue, logits)

        try:
            with torch.inference_mode():
                # The largest first: buffers and pool are then as large as they get, and nothing moves any more.
                self._programs = {size: program(size) for size in sorted(sizes, reverse=True)}
        except Exception as error:
            raise wrong_graphs(f"a decode step cannot be captured: {type(error).__name__}: {error}") from error
        self._sizes = sorted(self._programs)

    def fits(self, rows: int) -> bool:
        return rows <= self._sizes[-1]

    def logits(self, inputs: Mapping[str, Ints]) -> Tensor:
        """Of a step whose rows are all decode rows, as `InputBatch.arrays` gives it: float32 [rows, vocab_size], valid
        until the next call."""
        return self._run(inputs, lambda program: program.replay)

    def differs(self, inputs: Mapping[str, Ints]) -> bool:
        """Does the program of this step give other bits than its kernels one by one?"""
        there = self._run(inputs, lambda program: program.queue)
        one = there.clone()
        there.fill_(float("nan"))  # a program that does nothing leaves no right numbers behind
        return not torch.equal(one, self.logits(inputs))

    def _run(self, inputs: Mapping[str, Ints], how: Callable[[_Program], Queue]) -> Tensor:
        rows = len(inputs["token_ids"])
        size = next(size for size in self._sizes if size >= rows)
        self._buffers.put(padded(inputs, size))
        program = self._programs[size]
        how(program)()
        return program.logits[:rows]


def wrong_graphs(what: str) -> UnfitError:
    return UnfitError("WrongGraphs", f"{what}; without {VARIABLE} the worker serves")


def cannot_capture(kernels: Kernels) -> str:
    """Why a decode step cannot be one program with these kernels; empty: it can, of any model."""
    if kernels.name == ReferenceKernels().name:
        return "the plain torch kernels ask the device for lengths in the middle of a step"
    return ""


def _nobody(most_blocks: int) -> dict[str, Ints]:
    """A step without a row."""
    empty = np.zeros(0, np.int32)
    names = ("token_ids", "positions", "slot_mapping", "seq_lens", "sampled")
    found = dict.fromkeys(names, empty) | {"query_start_loc": np.zeros(1, np.int32)}
    return found | {"block_tables": np.zeros((0, most_blocks), np.int32)}


def padded(inputs: Mapping[str, Ints], size: int) -> dict[str, Ints]:
    """The same step of decode rows with `size` of them. A row more reads the first position of block 0, whoever has it,
    and writes nothing."""
    rows = len(inputs["token_ids"])
    more = np.zeros(size - rows, np.int32)
    tables = inputs["block_tables"]
    return {
        "token_ids": np.concatenate((inputs["token_ids"], more)),
        "positions": np.concatenate((inputs["positions"], more)),
        "slot_mapping": np.concatenate((inputs["slot_mapping"], more - 1)),
        "seq_lens": np.concatenate((inputs["seq_lens"], more + 1)),
        "query_start_loc": np.arange(size + 1, dtype=np.int32),
        "sampled": np.arange(size, dtype=np.int32),
        "block_tables": np.concatenate((tables, np.zeros((size - rows, tables.shape[1]), np.int32))),
    }


class CudaCapture:
    """CUDA graphs that share one pool of memory: what is captured may not wait for the device, and what it allocates
    stays the graphs' own. Source: torch.cuda.graph.

    It holds the last of them: torch refuses a pool whose graphs are all gone, as those of the gate are when those that
    serve are made. And all are made on one stream: cuBLAS has a workspace for each that it has seen, tens of MiB.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
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
