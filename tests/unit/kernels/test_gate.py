"""The gate before a GPU worker serves: kernels that differ from their twins, or do not run, are named. On the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from semipd_engine.cards.blocks import Latent, Mixture, Routing
from semipd_engine.kernels import ReferenceKernels
from semipd_engine.kernels.gpu import TritonKernels, attention
from semipd_engine.worker import kernel_gate
from semipd_engine.worker.kernel_gate import gate_kernels
from semipd_engine.worker.servable import UnfitError

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide"),  # rows of a tile that nobody stores
]
WIDE = TritonKernels(num_sms=1 << 20)
"""So many SMs that everything is split."""


@dataclass(frozen=True)
class Config:
    """What the gate reads of a model's."""

    hidden_size: int
    num_heads: int
    head_dim: int
    q_width: int
    kv_width: int
    vocab_size: int = 20011
    intermediate_size: int = 1000
    qk_norm: bool = False
    windows: tuple[int, ...] = ()
    latent: Latent | None = None
    mixture: Mixture | None = None


FEW = Mixture(Routing(6, 2, sigmoid=True, normalise=True, groups=3, groups_chosen=2), 24, (True,))
DENSE = Config(hidden_size=72, num_heads=4, head_dim=16, q_width=64, kv_width=32, qk_norm=True, windows=(0, 17))
LATENT = Config(
    hidden_size=72, num_heads=3, head_dim=16, q_width=0, kv_width=0, latent=Latent(32, 8, 16, 16), mixture=FEW
)


@pytest.mark.parametrize("config", [DENSE, LATENT], ids=["dense", "latent"])
def test_the_gate_lets_right_kernels_pass(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over fewer and shorter sequences: the interpreter is slow."""
    batches = (((1, 1), (1, 600), (0, 5), (3, 20)), ((3, 20),), ((1, 600),), ((1, 1), (1, 17)))
    monkeypatch.setattr(kernel_gate, "BATCHES", batches)
    gate_kernels(WIDE, config, torch.float32, torch.device("cpu"), kernel_gate.BLOCK_SIZE)


WRONG: dict[str, Callable[[Tensor], object]] = {
    "rms_norm": lambda out: out[-1].mul_(1.01),
    "silu_mul": lambda out: out[:, -1].zero_(),
    "qk_norm_rope_write_kv": lambda out: out[0].add_(0.01),
    "paged_attention": lambda out: out[2, -1].mul_(1.1),
    "latent_rope_write": lambda out: out[0, :, -1].neg_(),
    "latent_attention": lambda out: out[-1, 0].fill_(torch.nan),
    "route": lambda out: out[0].add_(1),
    "grouped_linear": lambda out: out[-1].mul_(1.01),
    "combine": lambda out: out[0].add_(0.01),
}
DENSE_KERNELS = {"rms_norm", "silu_mul", "qk_norm_rope_write_kv", "paged_attention"}
OUT = {
    "route": 3,
    "grouped_linear": 2,
    "combine": 2,
    "rms_norm": 3,
    "silu_mul": 1,
    "qk_norm_rope_write_kv": 0,
    "paged_attention": 7,
    "latent_rope_write": 8,
}


@pytest.mark.parametrize("kernel", WRONG)
def test_the_gate_names_a_kernel_that_is_wrong_or_does_not_run(kernel: str) -> None:
    """The twins, one of which is spoilt a little: what a card that computes otherwise would do."""

    class Spoilt(ReferenceKernels):
        name = "triton"

    def spoilt(self: ReferenceKernels, *arguments: Any, **more: Any) -> None:
        getattr(ReferenceKernels, kernel)(self, *arguments, **more)
        WRONG[kernel](arguments[OUT.get(kernel, 6)])

    def broken(self: ReferenceKernels, *arguments: Any, **more: Any) -> None:
        raise RuntimeError("no such instruction")

    config = DENSE if kernel in DENSE_KERNELS else LATENT
    for method, says in ((spoilt, "differs from its twin"), (broken, "failed: RuntimeError: no such instruction")):
        setattr(Spoilt, kernel, method)
        with pytest.raises(UnfitError, match=f"{kernel} {says}.*SEMIPD_KERNELS=reference") as error:
            gate_kernels(Spoilt(), config, torch.float32, torch.device("cpu"), kernel_gate.BLOCK_SIZE)
        assert error.value.reason == "WrongKernels"


def test_the_gate_asks_for_tokens_too() -> None:
    class Late(ReferenceKernels):
        name = "triton"

        def sample(
            self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
        ) -> Tensor:
            return super().sample(logits, temperature, top_k, top_p, min_p, uniform * 0.9)

    with pytest.raises(UnfitError, match="sample differs from its twin"):
        gate_kernels(Late(), DENSE, torch.float32, torch.device("cpu"), kernel_gate.BLOCK_SIZE)


def test_the_gate_asks_for_what_rows_want_of_their_logits() -> None:
    class Free(ReferenceKernels):
        name = "triton"

        def adjust(self, logits: Tensor, *more: Tensor) -> Tensor:
            found = super().adjust(logits, *more)
            return found.where(found > -30, -30)

    with pytest.raises(UnfitError, match="adjust differs from its twin"):
        gate_kernels(Free(), DENSE, torch.float32, torch.device("cpu"), kernel_gate.BLOCK_SIZE)


@pytest.mark.parametrize("block_size", [1, 8, 64, 2000])
@pytest.mark.parametrize("config", [DENSE, LATENT], ids=["dense", "latent"])
def test_the_gate_asks_over_blocks_of_the_workers_size(config: Any, block_size: int) -> None:
    """A kernel is compiled anew for a size that is no multiple of 16: proof of another one is none."""

    seen = set[int]()

    class Blocks(ReferenceKernels):
        name = "triton"

        def paged_attention(self, *arguments: Any, **more: Any) -> None:
            seen.add(arguments[1].shape[1])
            super().paged_attention(*arguments, **more)

        def latent_attention(self, *arguments: Any, **more: Any) -> None:
            seen.add(arguments[1].shape[1])
            super().latent_attention(*arguments, **more)

    gate_kernels(Blocks(), config, torch.float32, torch.device("cpu"), block_size)
    assert seen == {block_size}


def test_the_gate_needs_no_more_memory_for_experts_than_they_are() -> None:
    """Drawn in float32 all at once they would be as large as the layer's own, twice, in each worker that starts."""
    experts, hidden = 64, 256
    config: Any = replace(LATENT, hidden_size=hidden, mixture=Mixture(Routing(experts, 2), 24, (True,)))
    largest = Counter[torch.dtype]()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            found = function(*arguments, **(named or {}))
            if isinstance(found, Tensor):
                largest[found.dtype] = max(largest[found.dtype], found.numel())
            return found

    class Same(ReferenceKernels):
        name = "triton"

    with Watch():
        gate_kernels(Same(), config, torch.bfloat16, torch.device("cpu"), kernel_gate.BLOCK_SIZE)
    group = experts * 2 * kernel_gate.EXPERT_COLUMNS * hidden
    assert largest[torch.bfloat16] == group
    assert 0 < largest[torch.float32] < group // 8


def test_the_gate_takes_a_token_that_does_not_exist_for_a_wrong_one() -> None:
    """As an index it would be an assertion of the device, after which nothing runs there."""

    class Beyond(ReferenceKernels):
        name = "triton"

        def sample(self, *arguments: Tensor) -> Tensor:
            return super().sample(*arguments) + DENSE.vocab_size

    with pytest.raises(UnfitError, match="sample differs from its twin"):
        gate_kernels(Beyond(), DENSE, torch.float32, torch.device("cpu"), kernel_gate.BLOCK_SIZE)


def test_an_error_that_waits_for_the_numbers_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch returns at once: what a kernel does wrong there is told by whoever looks at its results."""

    class Queued(ReferenceKernels):
        name = "triton"

    def late(tensor: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Tensor, "double", late)
    with pytest.raises(UnfitError, match=r"rms_norm failed: RuntimeError: CUDA error.*SEMIPD_KERNELS") as error:
        gate_kernels(Queued(), DENSE, torch.float32, torch.device("cpu"), kernel_gate.BLOCK_SIZE)
    assert error.value.reason == "WrongKernels"


class OnlySometimes(ReferenceKernels):
    """Attention that is wrong for prompts or for decode rows, over contexts that may be split or not."""

    name = "triton"

    def __init__(self, decode: bool, long: bool) -> None:
        super().__init__()
        self._wrong = (decode, long)

    def _spoil(self, q: Tensor, tables: Tensor, lengths: Tensor, out: Tensor) -> None:
        long = tables.shape[1] * kernel_gate.BLOCK_SIZE >= 2 * attention.POSITIONS_OF_A_SPLIT
        if (len(q) <= 2 * len(lengths), long) == self._wrong:
            out[-1, -1, -1] += 0.1

    def paged_attention(self, *arguments: Any, **more: Any) -> None:
        super().paged_attention(*arguments, **more)
        self._spoil(arguments[0], arguments[3], arguments[4], arguments[7])

    def latent_attention(self, *arguments: Any, **more: Any) -> None:
        super().latent_attention(*arguments, **more)
        self._spoil(arguments[0], arguments[2], arguments[3], arguments[6])


@pytest.mark.parametrize("config", [DENSE, LATENT], ids=["dense", "latent"])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_the_gate_asks_for_each_form_in_which_attention_is_compiled(config: Any, decode: bool, long: bool) -> None:
    with pytest.raises(UnfitError, match="attention differs from its twin"):
        gate_kernels(OnlySometimes(decode, long), config, torch.float32, torch.device("cpu"), kernel_gate.BLOCK_SIZE)


def test_a_gate_without_memory_says_nothing_of_the_kernels() -> None:
    class Poor(ReferenceKernels):
        name = "triton"

        def rms_norm(self, *arguments: Any, **more: Any) -> None:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    with pytest.raises(UnfitError, match="2 GiB") as error:
        gate_kernels(Poor(), DENSE, torch.float32, torch.device("cpu"), kernel_gate.BLOCK_SIZE)
    assert error.value.reason == "WarmUpFailed"
