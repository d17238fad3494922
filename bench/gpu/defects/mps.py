"""Of MPS: its environment, and the order in which its clients end."""

from __future__ import annotations

from bench.gpu.defects.defect import AGENT, ENGINE, Defect, of

MPS: tuple[Defect, ...] = (
    *of(
        f"{ENGINE}/resident/cuda_environment.py",
        "tests/unit/test_cuda_environment.py",
        ("MPS environment", 'if not name.startswith("CUDA_MPS_")', 'if name != "CUDA_MPS_PIPE_DIRECTORY"'),
        ("MPS environment", "without_mps(resident) | dict(rung)", "dict(rung) | without_mps(resident)"),
    ),
    *of(
        f"{AGENT}/programs.py",
        "tests/unit/test_mps_preflight.py tests/unit/test_mps_lifecycle.py tests/unit/test_mps_engine.py",
        ("MPS environment", "| {PERCENTAGE: str(percent)}", "| {PERCENTAGE: str(100)}"),
    ),
    *of(
        f"{ENGINE}/core/worker_pool.py",
        "tests/unit/test_worker_ends.py",
        (
            "order of ends",
            "        if not holder.rung.terminate_seconds:\n",
            "        if holder.rung.terminate_seconds:\n",
        ),
        ("order of ends", "environment, rung.terminate_seconds))", "environment))"),
    ),
    *of(
        f"{ENGINE}/resident/resident.py",
        "tests/unit/test_resident_ends.py",
        ("order of ends", "LEAVE_GPU_SECONDS + self._terminate_seconds", "LEAVE_GPU_SECONDS"),
    ),
    *of(
        f"{AGENT}/backend.py",
        "tests/unit/test_mps_workers.py -k 'core_is_gone'",
        ("order of ends", "self._keeper.terminate(pid for pid in left", "list(pid for pid in left"),
        ("order of ends", "if snapshot.core_id != self._core:", "if self._core in ('', snapshot.core_id):"),
    ),
)
