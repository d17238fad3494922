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

from e2e.lib.waiting import wait_until
from semipd_agent.partitioner.mps.green import PROBE, TEXT, Green, Refused
from semipd_agent.partitioner.mps.ladder import Timing
from semipd_engine.contract import Phase
from semipd_engine.green import hold, probe
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
    said: dict[str, Any] = json.loads(done.stdout)
    # Nor is anything left of what was made: the stand-in does not let a context go that still has something.
    assert said["trouble"] or device.read_bytes().count(b"\1") == taken, "nothing is held any more"
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
        "20": "20 % of prefill: cuGreenCtxCreate: CUDA_ERROR_OUT_OF_MEMORY (2); each of them takes some of the "
        "device's memory: leave more of it free",
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


def test_clients_whose_groups_have_other_sizes_do_not_split_alike(library: str, tmp_path: Path) -> None:
    said = probed(library, tmp_path, STUB_COARSE="1")
    assert said["apart"] is False and said["why"].startswith("prefill splits the device into [8, 8, 8, ")
    with pytest.raises(Refused, match=r"GreenContextsOverlap: .* decode into \[16, 16, "):
        Green.read(said)


@pytest.mark.parametrize("call", ["cuDeviceGetDevResource", "cuDevSmResourceSplitByCount"])
def test_a_split_that_the_driver_refuses_is_told_with_its_name_for_it(library: str, tmp_path: Path, call: str) -> None:
    said = probed(library, tmp_path, STUB_DOES=f"{call}=801")
    assert (said["error"], said["trouble"]) == (
        f"prefill: {call}: CUDA_ERROR_NOT_SUPPORTED (801); this driver has none for this card, or for a process that "
        "is limited already",
        "",
    )


def test_a_stream_that_cannot_be_made_costs_its_rung_and_its_green_context(
    library: str, tmp_path: Path, driven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, before = Groups(), driver._driver().stub_alive()
    monkeypatch.setenv("STUB_DOES", "cuGreenCtxStreamCreate=2")
    with pytest.raises(driver.CudaError, match=r"cuGreenCtxStreamCreate: CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        groups.lane(range(3))
    assert driver._driver().stub_alive() == before
    said = probed(library, tmp_path)
    assert said["lost"]["50"] == (
        "50 % of decode: cuGreenCtxStreamCreate: CUDA_ERROR_OUT_OF_MEMORY (2); each of them takes some of the device's "
        "memory: leave more of it free"
    )
    with pytest.raises(Refused, match=r"GreenContextsUnavailable: 10 % of decode: cuGreenCtxStreamCreate"):
        Green.read(said)


@pytest.mark.parametrize(
    ("environment", "trouble"),
    [
        ({"STUB_INIT": "805"}, "prefill, hello: cuInit: CUDA_ERROR_MPS_CONNECTION_FAILED (805)"),
        ({"STUB_DOES": "cuGreenCtxCreate=crash"}, "prefill, hello: the client ended with -6"),
        ({"STUB_DOES": "cuLaunchKernel=719"}, "prefill, hold 10: cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED (719)"),
        ({"STUB_DOES": "cuStreamSynchronize=719"}, "prefill, end: cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED (719)"),
        ({"STUB_DOES": "cuLaunchKernel=crash"}, "prefill, hold 10: the client ended with -6"),
    ],
    ids=["MPS is gone", "crash in a split", "context lost", "context lost in a kernel", "crash in a kernel"],
)
def test_trouble_is_no_word_on_green_contexts_and_refuses_them(
    library: str, tmp_path: Path, environment: dict[str, str], trouble: str
) -> None:
    said = probed(library, tmp_path, **environment)
    assert (said["trouble"], said["error"], said["apart"]) == (trouble, "", None)
    with pytest.raises(Refused, match="GreenProbeFailed: prefill, "):
        Green.read(said)


HUNG = """
import os, sys
from semipd_engine.green import probe
probe.SECONDS, probe.LEAVE_SECONDS = float(sys.argv[1]), 1.0
probe.main(sys.argv[2:])
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("nobody is left")
"""


def hanging(library: str, call: str) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(Path(library).parent), "STUB_DOES": f"{call}=hang"}


@pytest.mark.parametrize(
    ("call", "seconds", "trouble"),
    [
        ("cuDeviceGetDevResource", 3, "prefill, hello: no answer within the self-test's 3 s"),
        ("cuGreenCtxDestroy", 90, "the clients ended with [-9, -9]"),
    ],
)
def test_a_client_that_hangs_is_killed_and_buried(library: str, call: str, seconds: int, trouble: str) -> None:
    command = [sys.executable, "-c", HUNG, str(seconds), TEXT]
    done = subprocess.run(command, env=hanging(library, call), capture_output=True, text=True, timeout=120)
    said, left = done.stdout.splitlines()
    assert (json.loads(said)["trouble"], left) == (trouble, "nobody is left"), done.stderr


def test_a_client_that_hangs_in_the_driver_does_not_outlive_a_killed_probe(library: str) -> None:
    environment = hanging(library, "cuDeviceGetDevResource")
    asked = subprocess.Popen([*PROBE, TEXT], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{asked.pid}/task/{asked.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2, describe="two clients")
    clients = children.read_text().split()
    asked.kill()
    asked.wait()

    def ended(pid: str) -> bool:
        stat = Path(f"/proc/{pid}/stat")
        try:
            return stat.read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_until(lambda: all(map(ended, clients)), describe="the end of the clients")


def test_what_a_client_prints_besides_its_answers_is_none(library: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.write, 1, b'a library\\n')\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [*PROBE, "--client", "prefill", TEXT],
        env={**os.environ, "LD_LIBRARY_PATH": str(Path(library).parent), "PYTHONPATH": paths},
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "a library" in done.stderr and len(done.stdout.splitlines()) == 1, done.stdout
    assert json.loads(done.stdout)["sizes"] == [8] * 16 + [4]


def test_the_agents_limit_is_for_a_self_test_that_cannot_give_up_by_itself() -> None:
    assert Timing().green > probe.SECONDS + 2 * len(Phase) * probe.LEAVE_SECONDS


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
