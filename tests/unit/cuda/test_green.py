"""Green contexts and their self-test, over the stand-in for the driver: two processes on one device of 132 SMs.

The stand-in gives an SM to one block at a time, whichever process launches it; what real SMs do needs a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import triton  # type: ignore[import-untyped]
from tests.unit.cuda.stub import libcuda

from semipd_agent.partitioner.mps.green import PROBE, TEXT, Green, Refused
from semipd_engine.contract import Phase
from semipd_engine.green import hold
from semipd_engine.green.driver import Groups
from semipd_engine.memory import driver

pytestmark = pytest.mark.unit

PREFILL = {10: 16, 20: 24, 30: 40, 40: 56, 50: 64, 60: 80, 80: 104}
DECODE = {10: 12, 20: 28, 30: 36, 40: 52, 50: 68, 60: 76, 80: 108}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return libcuda(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def driven(library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    driver._driver.cache_clear()
    monkeypatch.setattr(driver, "LIBRARY", library)
    yield
    driver._driver.cache_clear()


def probed(library: str, folder: Path, taken: int = 0, **environment: str) -> dict[str, Any]:
    """What the probe says of the stand-in's device, of which somebody else holds the first `taken` SMs."""
    device = folder / "device"
    device.write_bytes(b"\1" * taken + b"\0" * (132 - taken))
    surroundings = {"LD_LIBRARY_PATH": str(Path(library).parent), "STUB_DEVICE": str(device), **environment}
    command = [sys.executable, "-m", "semipd_engine.green.probe", TEXT]
    done = subprocess.run(command, env={**os.environ, **surroundings}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert device.read_bytes().count(b"\1") == taken, "nothing is held any more"
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_lane_has_the_sms_of_its_groups(driven: None) -> None:
    groups = Groups()
    assert groups.sizes == (8,) * 16 + (4,), "what is left over is a group, too"
    assert Groups().sizes == groups.sizes
    lanes = [groups.lane(range(3)), groups.lane(range(2, 17))]
    assert [lane.sm_count for lane in lanes] == [24, 116], "and others may hold them as well"
    assert lanes[0].stream != lanes[1].stream != 0


def test_two_clients_hold_all_of_their_sms_at_the_same_time(library: str, tmp_path: Path) -> None:
    said = probed(library, tmp_path)
    assert (said["error"], said["total"], said["apart"], said["lost"]) == ("", 132, True, {})
    assert said["why"] == "both phases held all of their SMs at 10/80, 20/80, 30/60, 40/60, 50/50, 60/40, 80/20"
    found = Green.read(said)
    assert found.sms == {Phase.PREFILL: PREFILL, Phase.DECODE: DECODE}
    assert found.seen and found.rungs == (10, 20, 30, 40, 50, 60, 80, 100)


def test_clients_whose_groups_are_others_are_seen_to_share_sms(library: str, tmp_path: Path) -> None:
    said = probed(library, tmp_path, STUB_ORDERS="1")
    assert said["apart"] is False and "of its 108 SMs while prefill held 16" in said["why"]
    with pytest.raises(Refused, match="GreenContextsOverlap"):
        Green.read(said)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"STUB_BLIND": "1"}, "212 blocks were here at 80/80, more than there are SMs: this proves nothing"),
        ({"STUB_HASTY": "1"}, "at 10/80 blocks ended before they were let go"),
        ({"STUB_SMALL_BLOCKS": "1"}, "an SM of 233472 bytes has room for two blocks of 101376"),
    ],
)
def test_what_cannot_be_seen_is_no_proof(library: str, tmp_path: Path, environment: dict[str, str], why: str) -> None:
    said = probed(library, tmp_path, **environment)
    assert said["apart"] is None and why in said["why"]
    assert not Green.read(said).seen


def test_a_device_that_somebody_uses_proves_nothing(library: str, tmp_path: Path) -> None:
    said = probed(library, tmp_path, taken=9)
    assert (
        said["apart"] is None and "7 of 16 blocks began on prefill's 10 % alone: the device is not free" in said["why"]
    )


def test_a_rung_that_the_driver_refuses_or_gives_fewer_sms_is_lost_by_itself(library: str, tmp_path: Path) -> None:
    said = probed(library, tmp_path, STUB_REFUSED="24", STUB_FEWER="52")
    assert said["apart"] is True
    assert said["lost"] == {
        "20": "20 % of prefill: cuGreenCtxCreate: CUDA_ERROR_OUT_OF_MEMORY (2)",
        "40": "40 % of decode has 44 SMs, its groups have 52",
    }
    assert Green.read(said).rungs == (10, 30, 50, 60, 80, 100)


def test_a_driver_without_green_contexts_is_named(tmp_path: Path) -> None:
    said = probed(libcuda(tmp_path, "-DOLD"), tmp_path)
    assert said["error"] == (
        "prefill: cuDeviceGetDevResource: this driver does not have it (-1); green contexts came with the driver of "
        "CUDA 12.4"
    )
    with pytest.raises(Refused, match=r"GreenContextsUnavailable: .*newer, .*unset SEMIPD_PARTITION_BACKEND"):
        Green.read(said)


def test_without_a_driver_there_is_an_answer_all_the_same() -> None:
    done = subprocess.run([*PROBE, TEXT], capture_output=True, text=True, timeout=120, check=True)
    assert "libcuda.so.1" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize("card", ["sm_80", "sm_90"])
def test_nvidias_assembler_takes_the_kernel(tmp_path: Path, card: str) -> None:
    source = tmp_path / "hold.ptx"
    source.write_bytes(hold.PTX.rstrip(b"\0"))
    assembler = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / "ptxas"
    command = [str(assembler), f"-arch={card}", "-v", str(source), "-o", str(tmp_path / "hold")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Compiling entry function 'hold'" in done.stderr and "0 bytes spill stores" in done.stderr
