"""The GPU's kernels compiled for real cards, without one: what the page says of them is what the compiler says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import triton  # type: ignore[import-untyped]
from triton.backends.nvidia import driver as nvidia  # type: ignore[import-untyped]

from hack.generate import gpu_kernels
from semipd_engine.kernels.gpu import ahead, cache

pytestmark = pytest.mark.unit
ROWS = [line for line in gpu_kernels.PAGE.read_text().splitlines() if "| sm_" in line]
SHARED = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10}
"""Bytes that a program may have; CUDA C++ programming guide, technical specifications."""
CARDS = sorted(ahead.CARDS)
KERNELS = {
    *("attend", "join", "attend_latent", "rotate_and_write", "rotate_and_write_latent"),
    *("rms_norm", "silu_mul", "sample"),
    *("choose", "arrange", "multiply_experts", "combine", "forbid", "edit"),
}
AGAIN = ("Llama 3.1 8B", "DeepSeek-V2-Lite")
"""Each kernel is among theirs: compiled once more here, for the newest card. The page's other lines cost minutes."""
SCRIPT = """
import sys
import torch
from hack.generate.gpu_kernels import rows
from semipd_engine.kernels.gpu import TritonKernels, ahead

print(*rows(sys.argv[1:], [90]), sep="\\n")
print("BUSY")


def ints(*shape):
    return torch.empty(shape, dtype=torch.int32, device="meta")


def halves(*shape):
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


sizes, mixed = (ahead.MODELS[name] for name in sys.argv[1:])
with ahead.compiling(90) as known:
    ahead.launch(sizes, torch.bfloat16)
    ahead.launch(mixed, torch.bfloat16)
with ahead.compiling(90) as later:
    for rows in (1, 2, 16, 63, 2048):
        ahead.launch_experts(mixed, torch.bfloat16, rows)
    for sms in (1, 16, 66, 131):
        ahead.launch(sizes, torch.bfloat16, sms)
        for count in (1, 2, 15, 16, 17, 256):
            for blocks in (1, 16, 63, 512):
                for new in (1, 40):
                    q = halves(count * new, sizes.heads, sizes.head_dim)
                    cache = halves(8, 16, sizes.kv_heads * sizes.head_dim)
                    arguments = (ints(count, blocks), ints(count), ints(count + 1), 0.125, q)
                    for rows in (None, (0, 16), (1, count * new)):
                        TritonKernels(sms).paged_attention(q, cache, cache, *arguments, rows)
print(*sorted(later[key].kernel for key in later.keys() - known.keys()))
"""

STARTED = """
import sys
import torch
from tests.unit.kernels import launches
from semipd_engine.kernels.gpu import ahead

card = int(sys.argv[1])
for name, model in {"Llama 3.1 8B": "8B", "Llama 3.2 1B": "1B", "DeepSeek-V2-Lite": "DeepSeek-V2-Lite"}.items():
    with ahead.compiling(card) as carried:
        ahead.launch(ahead.MODELS[name], torch.bfloat16)
    for what in (launches.gate, launches.serve):
        for sms in (26, 132):
            with ahead.compiling(card) as launched:
                what(model, sms)
            missing = {launched[key].kernel for key in launched.keys() - carried.keys()}
            print(name, what.__name__, len(launched), *sorted(missing), sep="; ")
"""
LAUNCHED = """
import sys
import torch
from semipd_engine.kernels.gpu import ahead, cache

cache.use()
for card in map(int, sys.argv[2:]):
    with ahead.compiling(card) as made:
        ahead.launch(ahead.MODELS[sys.argv[1]], torch.bfloat16)
    print(card, len(made))
"""
FROM_THE_IMAGE = f"""
from triton.backends.nvidia import compiler


def compile_(*arguments, **options):
    raise AssertionError("compiled")


compiler.CUDABackend.make_ttir = compiler.CUDABackend.make_cubin = compile_
{LAUNCHED}
"""
LAUNCHER = """
from triton.backends.nvidia.driver import CudaUtils
from semipd_engine.kernels.gpu import cache
cache.use()
CudaUtils()
"""


def cells(line: str) -> tuple[str, str, str, list[int]]:
    kernel, form, card, _, said = (cell.strip() for cell in line.strip("|").split("|"))
    return kernel, form, card, [int(number) for number in said.split("/")]


OTHERS = sorted(gpu_kernels.PAGE.parent.glob("kernels-triton-*.md"))
"""Pages of other Tritons: torch 2.11, the oldest that is supported, brings 3.6."""
SCANS = {"arrange"}
"""Their shared memory is the compiler's own, for a running sum; no tile lies in it."""


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_another_supported_triton_spills_nothing_either(page: Path) -> None:
    """The same forms with the same tiles: neither page lacks a kernel of the other."""
    lines = [line for line in page.read_text().splitlines() if "| sm_" in line]
    known = {cells(line)[:3]: cells(line)[3] for line in ROWS}
    assert f"By Triton {page.stem.removeprefix('kernels-triton-')} " in page.read_text()
    assert {cells(line)[:3] for line in lines} == known.keys()
    for kernel, form, card, (registers, spilled, shared, products) in map(cells, lines):
        assert spilled == 0 and 0 < registers <= 255 and shared <= SHARED[card], (kernel, form, card)
        assert products == known[kernel, form, card][3]
        assert known[kernel, form, card][2] == shared or kernel in SCANS, "another tile than ours"


def test_no_kernel_spills_and_each_fits_its_card() -> None:
    for kernel, form, card, (registers, spilled, shared, products) in map(cells, ROWS):
        assert spilled == 0 and 0 < registers <= 255, (kernel, form, card)
        assert shared <= SHARED[card], f"{kernel}, {form}: too much shared memory for {card}"
        multiplies = kernel.startswith(("attend", "multiply"))
        assert (products > 0) is multiplies, "attention and experts are on tensor cores, prompts and decode alike"
    forms = {card: {(kernel, form) for kernel, form, where, _ in map(cells, ROWS) if where == card} for card in SHARED}
    assert forms["sm_80"] == forms["sm_89"] == forms["sm_90"]
    assert {kernel for kernel, _ in forms["sm_90"]} == KERNELS


KEPT = Path(os.environ.get("SEMIPD_CACHE") or Path.home() / ".cache/semipd") / "triton"
"""Triton's cache: by content, so unchanged kernels cost these tests a second or two."""


def python(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With Triton's compiler, not its interpreter, in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "CC")}
    more = {"TRITON_CACHE_DIR": str(KEPT), "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=inherited | more, timeout=500)


@pytest.fixture(scope="module")
def compiled() -> tuple[list[str], list[str]]:
    """Lines of the page as this Triton gives them, and what later steps compile beyond a start's kernels."""
    done = python(SCRIPT, *AGAIN)
    assert done.returncode == 0, done.stderr
    again, _, later = done.stdout.partition("BUSY\n")
    return again.splitlines(), later.split()


def test_compiled_again_they_are_what_the_page_says(compiled: tuple[list[str], list[str]]) -> None:
    """To the register for the Triton of the page; for another supported one: nothing spills, and all fit."""
    again, _ = compiled
    assert {cells(line)[0] for line in again} == KERNELS
    made_by = re.search(r"By Triton (\S+) ", gpu_kernels.PAGE.read_text())
    assert made_by is not None
    if made_by[1] == version("triton"):
        assert set(again) <= set(ROWS), "run `python -m hack.generate.gpu_kernels`"
    for kernel, form, card, (_, spilled, shared, _) in map(cells, again):
        assert spilled == 0 and shared <= SHARED[card], (kernel, form)


def test_no_step_and_no_rung_compiles_what_the_start_did_not(compiled: tuple[list[str], list[str]]) -> None:
    """Any batch, table width, range of rows and count of SMs: else a stream would stop for a compiler."""
    assert compiled[1] == []


@pytest.mark.parametrize("card", CARDS)
def test_an_engines_start_launches_only_what_came_with_the_image(card: int) -> None:
    """The gate, the captured programs of all sizes, chunks, and steps of all kinds of rows, on a large rung and on a
    small one, of three models whose kernels are made ahead: with those in the image no start compiles a kernel."""
    done = python(STARTED, str(card))
    assert done.returncode == 0, done.stderr
    lines = [line.split("; ") for line in done.stdout.splitlines()]
    assert len(lines) == 3 * 2 * 2
    for model, what, launched, *missing in lines:
        assert not missing, (model, what, missing)
        assert int(launched) >= 6, (model, what)


@pytest.mark.parametrize("card", CARDS)
def test_a_card_asks_by_the_target_for_which_its_kernels_were_made(card: int) -> None:
    """It is part of Triton's key. What the driver says of a card is its capability."""
    asking = nvidia.CudaDriver.__new__(nvidia.CudaDriver)
    asking.get_current_device, asking.get_device_capability = lambda: 0, lambda _: divmod(card, 10)
    with ahead.compiling(card):
        assert triton.runtime.driver.active.get_current_target() == asking.get_current_target()


def test_what_came_with_the_image_is_not_compiled(tmp_path: Path) -> None:
    """For each card, wherever the image has it, and though the folder in which Triton would keep its own is empty."""
    image, own = tmp_path / "image", tmp_path / "own"
    asked = [AGAIN[0], *map(str, CARDS)]
    made = python(LAUNCHED, *asked)
    assert made.returncode == 0, made.stderr
    # What another run of these tests is about to put there comes and goes.
    passing = ("tmp.pid_*", "*.ttir", "*.ttgir", "*.llir", "*.ptx", "*.source")
    shutil.copytree(KEPT, image, ignore=shutil.ignore_patterns(*passing))
    for group in image.glob("*/__grp__*"):  # made on another machine
        group.write_text(group.read_text().replace(str(KEPT), "/nowhere"))
    found = python(FROM_THE_IMAGE, *asked, TRITON_CACHE_DIR=str(own), SEMIPD_GPU_KERNELS=str(image))
    assert found.returncode == 0, found.stderr
    assert found.stdout == made.stdout
    counts = dict(line.split() for line in found.stdout.splitlines())
    assert counts.keys() == set(asked[1:]) and all(int(count) > len(KERNELS) / 2 for count in counts.values())
    for card in CARDS:
        without = python(FROM_THE_IMAGE, AGAIN[0], str(card), TRITON_CACHE_DIR=str(own))
        assert "AssertionError: compiled" in without.stderr


def test_a_launcher_from_the_image_needs_no_compiler(tmp_path: Path) -> None:
    """Made by `ahead` without a driver; loaded beside one, here a stand-in, where no compiler is."""
    image, driver = tmp_path / "image", tmp_path / "driver"
    compiler = ahead.c_compiler()
    assert compiler is not None, "no C compiler: gcc, clang, or pip install ziglang"
    making = "import sys; from semipd_engine.kernels.gpu import ahead; ahead.main()"
    made = python(making.replace("ahead.main", f"sys.argv[1:] = {['--out', str(image), '--cards']}; ahead.main"))
    assert made.returncode == 0, made.stderr
    assert [path.name for path in image.glob("*/*.so")] == [cache.LAUNCHER]
    assert cache.has_launcher({cache.VARIABLE: str(image)}) and not cache.has_launcher({cache.VARIABLE: str(tmp_path)})

    driver.mkdir()
    names = set(re.findall(r"\bcu[A-Z]\w+(?=\()", (Path(nvidia.dirname) / "driver.c").read_text()))
    (driver / "stub.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names)))
    stub = ["-shared", "-fPIC", "-o", str(driver / "libcuda.so.1"), str(driver / "stub.c")]
    subprocess.run([*compiler, *stub], check=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    if asked := shutil.which("file"):  # by Python's `platform`, whose word is in Triton's key
        (tools / "file").symlink_to(asked)
    there = {"PATH": str(tools), "LD_LIBRARY_PATH": str(driver), "TRITON_LIBCUDA_PATH": str(driver)}
    own = {"TRITON_CACHE_DIR": str(tmp_path / "own")}
    loaded = python(LAUNCHER, SEMIPD_GPU_KERNELS=str(image), **there, **own)
    assert loaded.returncode == 0, loaded.stderr
    assert "Failed to find C compiler" in python(LAUNCHER, **there, **own).stderr
