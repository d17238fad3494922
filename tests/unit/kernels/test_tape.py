"""Recorded calls, replayed by a team of threads, do what the calls do one by one, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.unit.kernels.cases import Paged, normal, pack, pack_group
from torch import Tensor

from semipd_engine.cards.blocks import Routing
from semipd_engine.kernels import CannotRecord, RecordingKernels, ReferenceKernels, cpu

pytestmark = pytest.mark.unit
LEVELS = [level for level in cpu.LEVELS if level in cpu.runnable()]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Layer:
    """The kernels of a dense layer, each reading what the one before it wrote."""

    calls = 7

    def __init__(self, kernels: cpu.CpuKernels, rows: int, dtype: torch.dtype) -> None:
        self.kernels = kernels
        self.paged = Paged.make([rows + 70, 40], [rows - 1, 1], 4, 2, 64, 16, 1, dtype)
        self.x, self.residual = normal(rows, 256, seed=1, dtype=dtype), normal(rows, 256, seed=2, dtype=dtype)
        self.norm = normal(256, seed=3, dtype=dtype)
        self.qkv = pack(kernels, normal(512, 256, seed=4, dtype=dtype) * 0.05)
        self.up = pack(kernels, normal(256, 256, seed=9, dtype=dtype) * 0.05)
        self.down = pack(kernels, normal(256, 128, seed=5, dtype=dtype) * 0.05)
        self.bias = normal(512, seed=6, dtype=dtype)
        self.cos, self.sin = normal(rows, 32, seed=7), normal(rows, 32, seed=8)
        self.slots = torch.full((rows,), -1, dtype=torch.int32)  # the sequences' own entries stay as they are
        self.normed, self.projected = torch.empty_like(self.x), torch.empty(rows, 512, dtype=dtype)
        self.attended = torch.empty(rows, 4, 64, dtype=dtype)
        self.inner, self.out = torch.empty(rows, 128, dtype=dtype), torch.empty(rows, 256, dtype=dtype)
        self.gated = torch.empty(rows, 128, dtype=dtype)
        self.given = self.x.clone(), self.residual.clone()

    def run(self) -> None:
        k, paged = self.kernels, self.paged
        k.rms_norm(self.x, self.norm, 1e-6, self.normed, residual=self.residual)
        k.linear(self.normed, self.qkv, self.bias, self.projected)
        k.qk_norm_rope_write_kv(
            self.projected, self.cos, self.sin, self.slots, paged.keys, paged.values, 64, self.norm[:64], self.norm[:64]
        )
        k.paged_attention(
            self.projected[:, :256].view(-1, 4, 64),
            *(paged.keys, paged.values, paged.tables, paged.lengths, paged.starts, 0.125, self.attended),
        )
        k.silu_mul(self.attended.view(-1, 256), self.inner)
        k.linear(self.inner, self.down, None, self.out)
        k.gated_linear(self.out, self.up, self.bias[:256], self.gated)

    def outcome(self, act: Callable[[], None]) -> list[Tensor]:
        self.x.copy_(self.given[0])
        self.residual.copy_(self.given[1])
        for buffer in (self.normed, self.projected, self.attended, self.inner, self.out, self.gated):
            buffer.fill_(float("nan"))
        act()
        made = (self.residual, self.normed, self.projected[:, :256], self.attended, self.out, self.gated)
        return [each.clone() for each in made]


class Blocks:
    """The others: three of six experts for each row, then two heads of latent attention."""

    calls = 8

    def __init__(self, kernels: cpu.CpuKernels, rows: int, dtype: torch.dtype) -> None:
        self.kernels, self.rule = kernels, Routing(6, 3, normalise=True)
        self.paged = Paged.make([rows + 70, 40], [rows - 1, 1], 2, 1, 48, 16, 1, dtype)
        self.x, self.logits = normal(rows, 70, seed=1, dtype=dtype), normal(rows, 6, seed=2)
        self.up = pack_group(kernels, (normal(6, 330, 70, seed=3) / 8).to(dtype))
        self.down = pack_group(kernels, (normal(6, 96, 165, seed=4) / 8).to(dtype))
        self.heads = pack_group(kernels, (normal(2, 32, 32, seed=5) / 4).to(dtype))
        self.kv, self.norm = normal(rows, 48, seed=6, dtype=dtype), normal(32, seed=7, dtype=dtype)
        self.cos, self.sin = normal(rows, 8, seed=8), normal(rows, 8, seed=9)
        self.slots = torch.full((rows,), -1, dtype=torch.int32)  # the sequences' own entries stay as they are
        self.experts, self.order = torch.empty(rows, 3, dtype=torch.int32), torch.empty(3 * rows, dtype=torch.int32)
        self.weights, self.starts = torch.empty(rows, 3), torch.empty(7, dtype=torch.int32)
        self.wide, self.inner = torch.empty(3 * rows, 330, dtype=dtype), torch.empty(3 * rows, 165, dtype=dtype)
        self.said, self.out = torch.empty(3 * rows, 96, dtype=dtype), torch.empty(rows, 96, dtype=dtype)
        self.absorbed, self.attended = torch.empty(rows, 2, 48, dtype=dtype), torch.empty(rows, 2, 32, dtype=dtype)

    def run(self) -> None:
        k, paged = self.kernels, self.paged
        k.route(self.logits, None, self.rule, self.experts, self.weights, self.order, self.starts)
        k.grouped_linear(self.x, self.up, self.wide, self.order, self.starts)
        k.silu_mul(self.wide, self.inner)
        k.grouped_linear(self.inner, self.down, self.said, self.order, self.starts)
        k.combine(self.said, self.weights, self.out)
        q = self.out.view(-1, 2, 48)
        k.latent_rope_write(q, self.kv, self.cos, self.sin, self.slots, self.norm, 1e-6, paged.keys, self.absorbed)
        k.grouped_linear(q.flatten(0, 1)[:, :32], self.heads, self.absorbed.flatten(0, 1)[:, :32])
        k.latent_attention(self.absorbed, paged.keys, paged.tables, paged.lengths, paged.starts, 0.125, self.attended)

    def outcome(self, act: Callable[[], None]) -> list[Tensor]:
        for places in (self.experts, self.order, self.starts):
            places.zero_()
        for buffer in (self.weights, self.wide, self.inner, self.said, self.out, self.absorbed, self.attended):
            buffer.fill_(float("nan"))
        act()
        return [each.clone() for each in (self.wide, self.said, self.out, self.absorbed, self.attended)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "many"), [(Layer, 40), (Blocks, 60)])
def test_a_replay_equals_the_calls(
    level: str, dtype: torch.dtype, kind: type[Layer] | type[Blocks], many: int, threads: int
) -> None:
    kernels = cpu.CpuKernels(cpu.load(level))
    assert isinstance(kernels, RecordingKernels) and not isinstance(ReferenceKernels(), RecordingKernels)
    for rows in (2, many):
        layer = kind(kernels, rows, dtype)
        want = layer.outcome(layer.run)
        assert not any(bool(torch.isnan(each).any()) for each in want)
        layer.outcome(lambda: None)
        with kernels.recording() as calls:
            layer.run()
        assert len(calls) == layer.calls and bool(torch.isnan(layer.out).all()), "recording carries nothing out"
        tape = b"".join(calls)
        for _ in range(20):
            got = layer.outcome(lambda tape=tape: kernels.replay(tape))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(not LEVELS, reason="no compiled kernels")
def test_long_tapes_end_whatever_the_threads(threads: int) -> None:
    """A thousand small calls, far more meetings than items: nobody waits for ever."""
    kernels = cpu.CpuKernels(cpu.load(LEVELS[-1]))
    layer = Layer(kernels, 3, torch.bfloat16)
    with kernels.recording() as calls:
        layer.run()
    tape = b"".join(calls[1:]) * 200
    for _ in range(5):
        kernels.replay(tape)


@pytest.mark.skipif(not LEVELS, reason="no compiled kernels")
def test_what_the_twins_would_serve_cannot_be_recorded() -> None:
    kernels = cpu.CpuKernels(cpu.load(LEVELS[-1]))
    x = torch.randn(2, 8).half()
    out = torch.full_like(x, float("nan"))
    with pytest.raises(CannotRecord), kernels.recording():
        kernels.rms_norm(x, x[0], 1e-6, out)
    assert bool(torch.isnan(out).all())
    kernels.rms_norm(x, x[0], 1e-6, out)  # and afterwards it is carried out again
    assert not bool(torch.isnan(out).any())
