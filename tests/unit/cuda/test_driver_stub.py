"""The code that calls the driver, over a stand-in compiled from NVIDIA's header: its words, addresses and sizes.

What the stand-in cannot show is the device: that needs a GPU (`tests/gpu`).
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.unit.cuda.stub import libcuda
from torch import Tensor

from semipd_agent.partitioner.mps import probe
from semipd_engine.memory import cuda, driver
from semipd_engine.memory.layout import KVComponent, KVLayout
from semipd_engine.memory.manifest import ArenaEntry, RegionExport
from semipd_engine.memory.region import Region
from semipd_engine.model import device as devices
from semipd_engine.worker.attach import TorchModel
from semipd_engine.worker.servable import UnfitError
from semipd_engine.worker.start_messages import ModelExport

pytestmark = pytest.mark.unit

GPU = torch.device("cuda", 0)
READ_AND_WRITE = """
import ctypes, sys
from semipd_engine.memory import driver
driver.LIBRARY = sys.argv[1]
assert "torch" not in sys.modules
at = driver.attach(bytes.fromhex(sys.argv[2]))
sys.stdout.buffer.write(ctypes.string_at(at, int(sys.argv[3])))
ctypes.memset(at, 7, 2)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return libcuda(tmp_path_factory.mktemp("stub"))


def host_tensor(pointer: int, nbytes: int, device: torch.device) -> Tensor:
    """Of the stand-in's memory, which is the host's."""
    return torch.frombuffer((ctypes.c_ubyte * nbytes).from_address(pointer), dtype=torch.uint8)


@pytest.fixture
def driven(library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The engine's calls reach the stand-in; torch's own, which need a device, are left out."""
    driver._driver.cache_clear()
    monkeypatch.setattr(driver, "LIBRARY", library)
    monkeypatch.setattr(cuda, "_enter_context", lambda device: None)
    monkeypatch.setattr(cuda, "_tensor", host_tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    yield library
    driver._driver.cache_clear()


def attached(library: str, handle: bytes, nbytes: int) -> subprocess.CompletedProcess[bytes]:
    """What another process reads through the handle; it then writes two bytes."""
    command = [sys.executable, "-c", READ_AND_WRITE, library, handle.hex(), str(nbytes)]
    return subprocess.run(command, capture_output=True, timeout=120)


def test_another_process_maps_each_regions_own_bytes(driven: str) -> None:
    """Small ones, too: they would lie in one piece of memory, of which a handle opens the beginning."""
    regions = [Region.create(f"test {number}", 640, GPU) for number in range(2)]
    for number, region in enumerate(regions):
        assert region.data.shape == (640,) and not region.data.any(), "zeroed, whatever lay there"
        region.data[:4] = torch.tensor([number, 2, 3, 4])
        region.data[-1] = 9
        done = attached(driven, region.export().cuda_handle, 640)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout == bytes([number, 2, 3, 4, *[0] * 635, 9])
        assert region.data[:4].tolist() == [7, 7, 3, 4], "what the other one writes is here"


def test_errors_have_the_drivers_name_and_number(driven: str) -> None:
    with pytest.raises(driver.CudaError, match=r"cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY \(2\)") as error:
        Region.create("test", 1 << 40, GPU)
    assert error.value.code == driver.OUT_OF_MEMORY
    mine = Region.create("test", 64, GPU).cuda_handle
    with pytest.raises(driver.CudaError, match=r"cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_CONTEXT \(201\)"):
        cuda.attach(mine, 64, GPU)
    with pytest.raises(driver.CudaError, match=r"CUDA_ERROR_INVALID_VALUE"):
        cuda.attach(bytes(64), 64, GPU)
    with pytest.raises(ValueError, match="64 bytes, this one 3"):
        cuda.attach(b"abc", 64, GPU)


def test_memory_of_a_process_that_is_gone_does_not_open(driven: str) -> None:
    script = "import sys\nfrom semipd_engine.memory import driver\ndriver.LIBRARY = sys.argv[1]\n"
    script += "print(driver.allocate(1 << 21)[1].hex())"
    gone = subprocess.run([sys.executable, "-c", script, driven], capture_output=True, text=True, check=True)
    with pytest.raises(driver.CudaError, match="CUDA_ERROR_INVALID_HANDLE"):
        cuda.attach(bytes.fromhex(gone.stdout), 1 << 21, GPU)


def test_torch_that_copies_instead_of_mapping_is_an_error(driven: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch, "as_tensor", lambda data, device: torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="copied the shared memory"):
        cuda._tensor(4096, 4, GPU)


def export(device: str, weights: RegionExport, kv: RegionExport, kernels: str) -> ModelExport:
    layout = KVLayout(1, (KVComponent("keys", 4),), 1, 4)
    config = SimpleNamespace(architecture="any", vocab_size=8, kv_layout=lambda block_size, itemsize: layout)
    entry = ArenaEntry("norm", 0, (4,), "float32")
    return ModelExport(config, device, 1, 4, [entry], 0, weights, kv, 4, kernels)  # type: ignore[arg-type]


def test_a_worker_whose_handle_does_not_open_is_unfit(driven: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "open_gpu", lambda: None)
    nobodys = RegionExport(64, bytes(64))
    with pytest.raises(UnfitError, match="the resident's memory: CudaError: cuIpcOpenMemHandle_v2") as error:
        TorchModel.attach(export("cuda", nobodys, nobodys, "reference"), [])
    assert error.value.reason == "AttachFailed"


def test_a_worker_with_other_kernels_than_the_residents_is_unfit() -> None:
    regions = [Region.create("test", 64, torch.device("cpu")) for _ in range(2)]
    given = [os.dup(region.fd) for region in regions]
    with pytest.raises(UnfitError, match="the weights are packed for triton") as error:
        TorchModel.attach(export("cpu", regions[0].export(), regions[1].export(), "triton"), given)
    assert error.value.reason == "KernelsMismatch"


@pytest.mark.parametrize(
    ("environment", "context", "expected"),
    [
        ({}, False, {"sm_count": 132, "error": 0}),
        (
            {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50", "CUDA_MPS_PIPE_DIRECTORY": "here"},
            True,
            {"sm_count": 66, "error": 0},
        ),
        ({"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}, True, {"sm_count": 132, "error": 0}),
        ({"STUB_INIT": "805"}, False, {"sm_count": 0, "error": 805}),
        ({"STUB_CONTEXT": "807"}, True, {"sm_count": 0, "error": 807}),
        ({"STUB_CONTEXT": "807"}, False, {"sm_count": 132, "error": 0}),
    ],
)
def test_the_agents_probe(
    library: str, tmp_path: Path, environment: dict[str, str], context: bool, expected: dict[str, int]
) -> None:
    """Among them the silent failure: a percentage without a daemon has no effect, and no error."""
    (tmp_path / "control").touch()
    mps = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)} if environment.get("CUDA_MPS_PIPE_DIRECTORY") else {}
    nowhere = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "nowhere")}
    variables = {**os.environ, "LD_LIBRARY_PATH": str(Path(library).parent), **nowhere, **environment, **mps}
    command = [sys.executable, "-S", "-E", str(probe.__file__), *(["--context"] if context else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120, check=True)
    assert json.loads(done.stdout) == expected
