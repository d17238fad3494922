"""One step of a worker on a GPU, traced without one: few kernels, one wait, no loop over rows, bounded memory.

The real runner, decoder and kernels' callers run, on tensors that hold no numbers (`bench.gpu.step_trace`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.gpu.models import CASES, CHUNK, CONTEXT, Shape, card
from bench.gpu.step_trace import BLOCK, FakeWorker
from bench.gpu.witnesses import Trace
from semipd_engine.contract import EngineOptions
from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.ipc.tokens import Sampling, pack_bias
from semipd_engine.kernels import ReferenceKernels
from semipd_engine.kernels.gpu import TritonKernels
from semipd_engine.memory.kv_size import GPU_RESERVED

pytestmark = pytest.mark.unit

SMS, LAYERS = 132, 3
GIB = 1 << 30
MODELS: dict[str, Callable[[], FakeWorker]] = {
    "1B": lambda: worker("1B"),
    "8B": lambda: worker("8B"),
    "latent": lambda: worker("DeepSeek-V2-Lite", first_k_dense_replace=LAYERS),
    "experts": lambda: worker("DeepSeek-V2-Lite"),
}
MOST_KERNELS = {"1B": 10, "8B": 10, "latent": 13, "experts": 20}
"""Of a decode layer. Latent attention makes its queries and values in four products where the others need two. Experts
are ten in place of a dense block's three: two of the router, two of its choice, gate and up, down, three of the expert
of all rows, and the sum."""
OWN = {"ProjectGatedExperts", "ProjectExperts"}
"""Stages whose products are no library's: a launch of Triton does not say what it computes."""
DECODE = {batch: Shape(batch, 1, CONTEXT) for batch in (1, 16, 64)}
CHUNKS = {"first": Shape(1, CHUNK, CHUNK), "behind a prefix": Shape(1, CHUNK, 8192)}


@cache
def worker(name: str, **changes: object) -> FakeWorker:
    return FakeWorker(card(name, num_hidden_layers=LAYERS, **changes), TritonKernels(SMS), 8192)


@cache
def decode(model: str, batch: int) -> Trace:
    return MODELS[model]().step(DECODE[batch])


@pytest.mark.parametrize("batch", DECODE)
@pytest.mark.parametrize("model", MODELS)
def test_a_decode_layer_is_few_kernels(model: str, batch: int) -> None:
    trace = decode(model, batch)
    assert len(trace.layers()) == LAYERS
    assert max(trace.layers()) <= MOST_KERNELS[model], trace.kernels()


@pytest.mark.parametrize("batch", DECODE)
@pytest.mark.parametrize("model", MODELS)
def test_a_step_sends_its_inputs_once_and_waits_once_for_its_tokens(model: str, batch: int) -> None:
    trace = decode(model, batch)
    assert trace.waits == ["tolist"]
    assert len(trace.uploads) == 1


@pytest.mark.parametrize("model", MODELS)
def test_a_chunk_that_samples_nothing_waits_once_for_its_keys(model: str) -> None:
    trace = MODELS[model]().step(CHUNKS["first"], last=False)
    assert trace.waits == ["synchronize"]


def test_experts_are_as_many_kernels_whoever_is_chosen() -> None:
    """And of whatever batch: one launch for each product, over all experts."""
    for shape in (DECODE[1], DECODE[64], CHUNKS["first"]):
        kernels = MODELS["experts"]().step(shape).kernels()
        assert kernels["triton._multiply_experts"] == 2 * (LAYERS - 1)
        assert kernels["triton._choose"] == kernels["triton._arrange"] == kernels["triton._combine"] == LAYERS - 1


def test_rows_that_draw_wait_for_their_tokens_alone() -> None:
    drawing = Sampling(temperature=0.7, top_p=0.9, max_tokens=8)
    trace = MODELS["8B"]().step(DECODE[16], drawing)
    assert trace.waits == ["tolist"]
    assert len(trace.uploads) == 1 + 1, "their settings cross besides"


def test_what_rows_ask_of_their_logits_crosses_with_their_settings() -> None:
    """Bias, stop ids, penalties and masks: one copy more for all rows, two kernels, and no wait."""
    asked = Sampling(
        temperature=0.7, min_p=0.1, logit_bias=pack_bias({5: 1.0}), stop_token_ids=(2,), min_tokens=4, max_tokens=8
    )
    asked = replace(asked, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.3)
    table = list(range(CONTEXT // BLOCK + 1))

    def step(count: int) -> Trace:
        rows = [
            Row(
                *(i, [1], CONTEXT - 1, table),
                outputs="last",
                sampling=asked,
                history=list(range(50)),
                prompt_len=20,
                mask=b"\x07" * 99 if i % 2 else None,
            )
            for i in range(count)
        ]
        return MODELS["8B"]().plan(StepPlan(1, 1, rows))

    step(64)  # buffers grow once
    few, many = step(16), step(64)
    for trace in (few, many):
        assert trace.waits == ["tolist"] and len(trace.uploads) == 1 + 1
        assert trace.kernels()["triton._forbid"] == trace.kernels()["triton._edit"] == 1
    assert few.kernels() == many.kernels(), "the host goes over no rows of logits"


@pytest.mark.parametrize("model", MODELS)
def test_the_host_goes_over_no_rows(model: str) -> None:
    assert decode(model, 16).kernels() == decode(model, 64).kernels()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_takes_no_attention_with_a_mask(model: str, chunk: str) -> None:
    trace = MODELS[model]().step(CHUNKS[chunk])
    assert trace.masked == [] and not [name for name in trace.kernels() if "attention" in name]
    assert sum(n for name, n in trace.kernels().items() if name.startswith("triton._attend")) == LAYERS


@pytest.mark.parametrize("shape", [DECODE[16], CHUNKS["first"]], ids=["decode", "chunk"])
@pytest.mark.parametrize("model", MODELS)
def test_products_are_what_the_stages_say_they_cost(model: str, shape: Shape) -> None:
    """What predictions are made of: two accounts of one step."""
    trace = MODELS[model]().step(shape)
    said = sum(work.products + work.gathered for kind, work in trace.stages if kind not in OWN)
    assert sum(one.flops for one in trace.launches) == 2 * said


@pytest.mark.parametrize("model", MODELS)
def test_a_step_leaves_nothing_behind(model: str) -> None:
    one = MODELS[model]()
    first, again = one.step(CHUNKS["behind a prefix"]), one.step(CHUNKS["behind a prefix"])
    assert again.live == first.live and again.peak <= first.peak


def test_prompts_go_by_in_steps_that_fill_a_gpu() -> None:
    """By default; whoever says how large has that on any device."""
    options = EngineOptions(model=Path("m"))
    assert 2048 <= options.chunk_tokens("cuda") <= CHUNK and options.chunk_tokens("cpu") == 256
    given = EngineOptions(model=Path("m"), prefill_chunk_tokens=64)
    assert given.chunk_tokens("cuda") == given.chunk_tokens("cpu") == 64


def test_the_room_that_is_kept_for_workers_holds_their_steps() -> None:
    """Two workers for each phase, each with its context: the pool takes the rest of the GPU."""
    context = GIB // 2
    chunk = FakeWorker(card("8B", num_hidden_layers=1), TritonKernels(SMS), 8192).step(Shape(1, 4096, 8192)).peak
    batch = FakeWorker(card("8B", num_hidden_layers=1), TritonKernels(SMS), 8192).step(DECODE[64]).peak
    assert batch < 64 << 20, "logits of 64 rows in float32, and the rows between the stages"
    assert 2 * (chunk + batch) + 4 * context < GPU_RESERVED


@pytest.mark.parametrize("case", CASES)
def test_each_step_that_is_predicted_is_traced(case: str) -> None:
    for shape in CASES[case]:
        assert MODELS["1B"]().step(shape).layers()


def test_what_is_forbidden_is_seen() -> None:
    """The twins, as a GPU without a compiler runs them: they go over the rows, and the host reads their lengths."""
    twins = FakeWorker(card("8B", num_hidden_layers=LAYERS), ReferenceKernels(), 256)
    few, many = (twins.step(Shape(batch, 1, 64)) for batch in (2, 8))
    assert sum(many.kernels().values()) > sum(few.kernels().values()) + 6 * LAYERS
    assert few.waits.count("tolist") == 1 + 2 * LAYERS and "aten.nonzero" not in few.waits
    assert max(few.layers()) > MOST_KERNELS["8B"]
    drawing = twins.step(Shape(2, 1, 64), Sampling(temperature=1, top_k=5, max_tokens=3))
    assert {"aten.nonzero", "item"} & set(drawing.waits)
