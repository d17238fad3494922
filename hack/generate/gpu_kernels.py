"""docs/gpu/kernels.md: what the Triton kernels become on a card: registers, spills, shared memory, products.

Compiles with Triton's own ptxas what the engine would launch (`kernels.gpu.ahead`), so it needs no GPU and takes some
minutes: ``python -m hack.generate.gpu_kernels``. Triton must not be under its interpreter. With ``--triton VERSION`` it
is another one's page: that Triton comes from PyPI into the project's cache, beside the environment and not into it.
"""

# mypy: disable-error-code="import-untyped, no-untyped-call"

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/gpu/kernels.md"
CACHE = Path(os.environ.get("SEMIPD_CACHE") or Path.home() / ".cache" / "semipd")
MODELS = ("Llama 3.1 8B", "DeepSeek-V2-Lite", "experts in groups", "heads of 256")
"""Of `ahead.MODELS`: together they have each kernel."""
QUIET = (
    "DIM_TILE",
    "RANK_TILE",
    "ROTARY_TILE",
    "HALF_TILE",
    "GROUP_TILE",
    "HEAD_TILE",
    "SIZE_TILE",
    "CHOSEN_TILE",
)
"""Constants that follow from others."""


def figures(binary: Any) -> str:
    """Registers, spilled bytes, shared bytes and products of Triton's `CompiledKernel`."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = Path(str(triton.__file__)).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run(
            [tool, "-res-usage", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    products = re.findall(r"\b(?:HMMA|HGMMA)\.", said)
    shared = binary.metadata.shared
    return f"{used['REG']} / {used['STACK'] + used['LOCAL']} / {shared} / {len(products)}"


def rows(models: Iterable[str], cards: Iterable[int]) -> list[str]:
    """A line for each form of each kernel of these models on each card."""
    import torch

    from semipd_engine.kernels.gpu import ahead

    lines: dict[str, None] = {}
    for card in cards:
        for model in models:
            with ahead.compiling(card) as made:
                ahead.launch(ahead.MODELS[model], torch.bfloat16)
            for one in made.values():
                form = ", ".join(f"{name} {value}" for name, value in one.constants if name not in QUIET)
                warps = one.binary.metadata.num_warps
                lines[f"| {one.kernel} | {form} | sm_{card} | {warps} | {figures(one.binary)} |"] = None
    return list(lines)


def page() -> str:
    import triton

    from semipd_engine.kernels.gpu import ahead

    lines = [
        "# The GPU's kernels, compiled",
        "",
        "<!-- made by `python -m hack.generate.gpu_kernels` -->",
        "",
        f"By Triton {triton.__version__} and its ptxas, in bfloat16; **not executed on a GPU yet**. Spilled: bytes of",
        "stack and local memory of a thread. Products: tensor-core instructions (HMMA, HGMMA) of the machine code. For",
        f"{', '.join(MODELS)}.",
        "",
        "| kernel | form | card | warps | registers / spilled / shared bytes / products |",
        "|---|---|---|---|---|",
        *sorted(rows(MODELS, ahead.CARDS)),
    ]
    return "\n".join(lines) + "\n"


def page_of(version: str) -> Path:
    """Of a Triton that is not the environment's."""
    return PAGE.with_name(f"kernels-triton-{version}.md")


def _with(version: str) -> int:
    """This program again, in a process that finds that Triton first."""
    folder = CACHE / "tritons" / version
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{fresh}/triton"]
            subprocess.run([*command, f"triton=={version}"], check=True)
            (Path(fresh) / "triton").rename(folder)
    found = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "TRITON_CACHE_DIR": str(CACHE / "triton")}
    command = [sys.executable, "-m", "hack.generate.gpu_kernels", "--page", str(page_of(version))]
    return subprocess.call(command, env=os.environ | found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--triton", metavar="VERSION", help="another Triton's page, beside ours")
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write: %(default)s")
    arguments = parser.parse_args()
    if arguments.triton:
        return _with(arguments.triton)
    os.environ.pop("TRITON_INTERPRET", None)
    arguments.page.write_text(page())
    print(arguments.page.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
