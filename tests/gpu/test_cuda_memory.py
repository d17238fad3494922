"""Memory that a resident exports: another process maps the same bytes, and maps them once."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
import torch

from semipd_engine.memory.cuda import attach
from semipd_engine.memory.driver import CudaError
from semipd_engine.memory.region import Region

pytestmark = pytest.mark.gpu

NBYTES = (64 << 20) + 640
ATTACH = """
import sys, msgspec, torch
from semipd_engine.memory.manifest import RegionExport
from semipd_engine.memory.region import Region
export = msgspec.json.decode(sys.argv[1].encode(), type=RegionExport)
gpu = torch.device("cuda", 0)
torch.zeros(1, device=gpu)
before = torch.cuda.mem_get_info(gpu)[0]
region = Region.attach(export, [], gpu)
took = before - torch.cuda.mem_get_info(gpu)[0]
assert region.data[:4].tolist() == [1, 2, 3, 4], region.data[:4].tolist()
assert region.data[-1].item() == 9
region.data[4:8] = 7
torch.cuda.synchronize()
print(took)
"""


def test_another_process_reads_and_writes_the_same_bytes_without_a_copy(gpu: torch.device) -> None:
    region = Region.create("test", NBYTES, gpu)
    assert region.data.shape == (NBYTES,) and not region.data.any()
    region.data[:4] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8, device=gpu)
    region.data[-1] = 9
    torch.cuda.synchronize()
    exported = msgspec.json.encode(region.export()).decode()
    done = subprocess.run([sys.executable, "-c", ATTACH, exported], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < NBYTES // 2
    assert region.data[4:8].tolist() == [7, 7, 7, 7]


def test_a_handle_of_nobody_is_an_error(gpu: torch.device) -> None:
    with pytest.raises(CudaError, match="cuIpcOpenMemHandle"):
        attach(bytes(64), 1024, gpu)
    with pytest.raises(ValueError, match="64 bytes"):
        attach(b"", 1024, gpu)


def test_more_than_there_is_says_so(gpu: torch.device) -> None:
    with pytest.raises(CudaError) as error:
        Region.create("test", 1 << 50, gpu)
    assert error.value.code == 2
