"""Hatchling's hook: compiles the engine's kernels into the wheel, or into the tree of an editable install.

Where no compiler is found, or the machine is no Linux on x86-64, the wheel is pure and torch serves.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("engine/semipd_engine/kernels/cpu")


def _builder(root: str) -> Any:
    """`kernels/cpu/build.py` by its path: the package around it needs torch."""
    spec = importlib.util.spec_from_file_location("semipd_kernels_build", Path(root) / KERNELS / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class KernelsHook(BuildHookInterface):
    def dependencies(self) -> list[str]:
        """A compiler from PyPI where the system has none."""
        builder = _builder(self.root)
        return [builder.ZIG] if self.target_name == "wheel" and builder.supported() and not builder.compiler() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        builder = _builder(self.root)
        command = builder.compiler() if self.target_name == "wheel" and builder.supported() else None
        if command is None:
            print("semipd: no C++ compiler: the engine's kernels are not built, torch serves", file=sys.stderr)
            return
        try:
            builder.build(command)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"semipd: the engine's kernels are not built, torch serves: {error}", file=sys.stderr)
            return
        build_data["artifacts"].append(f"{KERNELS}/lib/*.so")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
