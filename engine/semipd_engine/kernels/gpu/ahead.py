"""Compiles ahead of time, without a GPU, what `TritonKernels` would launch: same keys, so Triton finds it in its cache.

``python -m semipd_engine.kernels.gpu.ahead --out DIR`` fills the folder that an image carries (`cache`): kernels of the
known models for the known cards, and Triton's launcher, which needs a C compiler (zig from PyPI will do) and Python's
headers. A launch inside `compiling` is compiled for a card and not carried out; its tensors may be on ``meta``.
Triton must not be under its interpreter. Of a model it knows the sizes that decide what is compiled.
"""

# mypy: disable-error-code="import-untyped, no-untyped-call"

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from semipd_engine.cards.blocks import Routing
from semipd_engine.kernels import ROWS, PackedGroup, PackedLayout
from semipd_engine.kernels.gpu import TritonKernels
from semipd_engine.kernels.gpu.attention import POSITIONS_OF_A_SPLIT
from semipd_engine.kernels.gpu.cache import LAUNCHER

CARDS = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Compute capability, ten times (A100; L4 and L40S; H100 and H200), and the bytes of shared memory that a program may
have there. Source: CUDA C++ programming guide, technical specifications per compute capability."""
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Sizes:
    """What of a model decides how its kernels are compiled."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int = 1
    head_dim: int = 128
    qk_norm: bool = False
    window: int = 0
    rank: int = 0
    """Of latent attention's vectors; 0: keys and values of each head."""
    rotary: int = 64
    """Of latent attention."""
    routing: Routing | None = None
    expert_inner: int = 0


MODELS = {
    "Llama 3.1 8B": Sizes(4096, 14336, 32, 8),
    "Llama 3.2 1B": Sizes(2048, 8192, 32, 8, 64),
    "Qwen3 1.7B": Sizes(2048, 6144, 16, 8, 128, qk_norm=True),
    "Qwen3 30B-A3B": Sizes(
        *(2048, 6144, 32, 4, 128), qk_norm=True, routing=Routing(128, 8, normalise=True), expert_inner=768
    ),
    "DeepSeek-V2-Lite": Sizes(2048, 10944, 16, rank=512, routing=Routing(64, 6), expert_inner=1408),
    "experts in groups": Sizes(
        *(4096, 14336, 32, 8),
        routing=Routing(256, 8, sigmoid=True, normalise=True, scale=2.5, groups=8, groups_chosen=4),
        expert_inner=2048,
    ),
    "heads of 80 with a window": Sizes(2560, 10240, 32, 32, 80, window=2047),
    "heads of 256": Sizes(2304, 9216, 8, 4, 256),
}
"""Whose kernels are known to compile, and come with an image; `docs/gpu/kernels.md`."""


@dataclass(frozen=True)
class Compiled:
    kernel: str
    card: int
    constants: tuple[tuple[str, Any], ...]
    binary: Any
    """Triton's `CompiledKernel`."""


class _Card:
    """What Triton asks of a driver before it compiles. Each card is a device, with a table of kernels of its own."""

    def __init__(self, card: int) -> None:
        self._card = card

    def get_current_device(self) -> int:
        return self._card

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._card, 32)


@contextmanager
def compiling(card: int) -> Iterator[dict[str, Compiled]]:
    """Launches inside are compiled for `card`; yields what they became, by Triton's key, in order."""
    made: dict[str, Compiled] = {}
    carry_out, driver = JITFunction.run, triton.runtime.driver
    before = driver._active

    @functools.wraps(carry_out)
    def compile_(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        binary = carry_out(self, *arguments, grid=grid, warmup=True, **options)
        constants = tuple((name, value) for name, value in options.items() if name in self.arg_names)
        made.setdefault(binary.hash, Compiled(self.fn.__name__.lstrip("_"), card, constants, binary))
        return binary

    JITFunction.run = compile_
    driver.set_active(_Card(card))
    try:
        yield made
    finally:
        JITFunction.run = carry_out
        driver._active = before


def launch(sizes: Sizes, dtype: torch.dtype, num_sms: int = 132) -> None:
    """Each kernel of a model of these sizes, in every form that a step may ask for."""
    kernels = TritonKernels(num_sms)

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = 5
    x, weight = tensor(rows, sizes.hidden), tensor(sizes.hidden)
    kernels.rms_norm(x, weight, 1e-5, tensor(rows, sizes.hidden))
    kernels.rms_norm(x, weight, 1e-5, tensor(rows, sizes.hidden), tensor(rows, sizes.hidden))
    kernels.silu_mul(tensor(rows, 2 * sizes.inner), tensor(rows, sizes.inner))
    slots = tensor(rows, dtype=torch.int32)
    angles = tensor(rows, (sizes.rotary if sizes.rank else sizes.head_dim) // 2, dtype=torch.float32)
    width = sizes.rank + sizes.rotary if sizes.rank else sizes.kv_heads * sizes.head_dim
    cache = tensor(8, BLOCK_SIZE, width)
    if sizes.rank:
        q, out = tensor(rows, sizes.heads, 128 + sizes.rotary), tensor(rows, sizes.heads, width)
        norm = tensor(sizes.rank)
        kernels.latent_rope_write(q, tensor(rows, width), angles, angles, slots, norm, 1e-6, cache, out)
    else:
        qkv = tensor(rows, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim)
        norms = (tensor(sizes.head_dim), tensor(sizes.head_dim)) if sizes.qk_norm else (None, None)
        kernels.qk_norm_rope_write_kv(qkv, angles, angles, slots, cache, cache, sizes.head_dim, *norms)
    if sizes.routing is not None:
        launch_experts(sizes, dtype, rows)
    one, logits = tensor(rows, dtype=torch.float32), tensor(rows, 128256, dtype=torch.float32)
    edits, masks = tensor(7, 4, dtype=torch.int32), tensor(2, 128256 // 32, dtype=torch.int32)
    kernels.adjust(logits, edits, tensor(rows + 1, dtype=torch.int32), one, masks, slots)
    kernels.sample(logits, one, slots, one, one, one.double())
    for rows_of_each in (1, 64):
        for blocks in (1, 2 * POSITIONS_OF_A_SPLIT // BLOCK_SIZE):
            tables, lengths, starts = (tensor(*shape, dtype=torch.int32) for shape in ((1, blocks), (1,), (2,)))
            if sizes.rank:
                q, out = tensor(rows_of_each, sizes.heads, width), tensor(rows_of_each, sizes.heads, sizes.rank)
                kernels.latent_attention(q, cache, tables, lengths, starts, 1.0, out)
                continue
            q, out = (tensor(rows_of_each, sizes.heads, sizes.head_dim) for _ in range(2))
            for window in {0, sizes.window}:
                kernels.paged_attention(q, cache, cache, tables, lengths, starts, 1.0, out, window=window)


def launch_experts(sizes: Sizes, dtype: torch.dtype, rows: int) -> None:
    """Those of a model that has experts, for a step of so many rows."""
    routing, kernels = sizes.routing, TritonKernels(1)
    assert routing is not None
    places = rows * routing.chosen

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def matrices(wide: int, narrow: int) -> PackedGroup:
        return PackedGroup(tensor(routing.experts, wide, narrow), PackedLayout(ROWS, (wide, narrow), wide, narrow))

    logits, weights = (tensor(rows, width, dtype=torch.float32) for width in (routing.experts, routing.chosen))
    experts = tensor(rows, routing.chosen, dtype=torch.int32)
    order, starts = (tensor(count, dtype=torch.int32) for count in (places, routing.experts + 1))
    correction = tensor(routing.experts, dtype=torch.float32) if routing.sigmoid else None
    kernels.route(logits, correction, routing, experts, weights, order, starts)
    x, inner = tensor(rows, sizes.hidden), tensor(places, sizes.expert_inner)
    said, out = tensor(places, sizes.hidden), tensor(rows, sizes.hidden)
    kernels.grouped_gated_linear(x, matrices(2 * sizes.expert_inner, sizes.hidden), inner, order, starts)
    kernels.grouped_linear(inner, matrices(sizes.hidden, sizes.expert_inner), said, order, starts)
    for shared in (None, x):
        kernels.combine(said, weights, out, shared)


def c_compiler() -> list[str] | None:
    """The command of a C compiler: $CC, gcc, clang, or PyPI's zig in this environment."""
    for name in (os.environ.get("CC", ""), "gcc", "clang"):
        if name and shutil.which(name.split()[0]):
            return name.split()
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def build_launcher(compiler: list[str]) -> None:
    """Into Triton's cache, under the key by which Triton looks for it. Raises CalledProcessError.

    It is linked with a `libcuda.so.1` that has nothing in it: the driver's own is there where it runs.
    """
    from triton.backends.nvidia import driver
    from triton.runtime import build

    def build_(name: str, source: str, folder: str, _: list[str], includes: list[str], __: list[str]) -> str:
        stub, empty, out = Path(folder) / "libcuda.so.1", Path(folder) / "empty.c", Path(folder) / LAUNCHER
        empty.write_text("")
        shared = [*compiler, "-shared", "-fPIC", "-O2"]
        subprocess.run([*shared, "-Wl,-soname,libcuda.so.1", "-o", stub, empty], check=True)
        headers = [f"-I{path}" for path in (*includes, sysconfig.get_path("include"))]
        linked = ["-Wl,--no-as-needed", str(stub)]
        subprocess.run([*shared, "-Wno-psabi", *headers, "-o", out, source, *linked], check=True)
        return str(out)

    text = (Path(driver.dirname) / "driver.c").read_text()
    before, triton.knobs.build.impl = triton.knobs.build.impl, build_
    try:
        build.compile_module_from_src(text, "cuda_utils", include_dirs=driver.include_dirs)
    except ImportError:
        pass  # it is made; without a driver it cannot be loaded
    finally:
        triton.knobs.build.impl = before


def main() -> None:
    parser = argparse.ArgumentParser(prog="ahead", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cards", type=int, nargs="*", choices=sorted(CARDS), default=sorted(CARDS))
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    compiler = c_compiler()
    if compiler is None:
        sys.exit("ahead: Triton's launcher needs a C compiler: gcc, clang, or pip install ziglang")
    triton.knobs.cache.dir = str(arguments.out.resolve())
    triton.knobs.compilation.store_binary_only = True
    try:
        build_launcher(compiler)
    except subprocess.CalledProcessError as error:
        sys.exit(f"ahead: Triton's launcher is not built; are Python's headers there? {error}")
    for card in arguments.cards:
        with compiling(card) as made:
            for model in arguments.models:
                launch(MODELS[model], torch.bfloat16)
        print(f"sm_{card}: {len(made)} kernels", flush=True)


if __name__ == "__main__":
    main()
