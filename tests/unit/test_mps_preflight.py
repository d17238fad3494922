"""Each refusal of the MPS preflight: its reason, the remedy in its words, and their order."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.mps_bench import H100, good_host

from semipd_agent.contract import PartitionReason
from semipd_agent.gpu.telemetry import ComputeMode
from semipd_agent.partitioner import PartitionerUnavailable
from semipd_agent.partitioner.mps import programs
from semipd_agent.partitioner.mps.preflight import POLICIES, Host, judge, look
from semipd_agent.partitioner.mps.programs import OUTSIDE_MPS, PIPE_DIRECTORY, Programs, surroundings

pytestmark = pytest.mark.unit
GOOD = good_host(Path("/run/spd"))


def refusal(host: Host) -> PartitionerUnavailable | None:
    try:
        judge(host)
    except PartitionerUnavailable as e:
        return e
    return None


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"gpu": None, "device_files": False}, "NoGPU", "nvidia.com/gpu"),
    ({"missing_programs": ("nvidia-cuda-mps-server",)}, "MPSUnavailable", "compute,utility"),
    ({"uids": (10001, 0, 0)}, "UserMismatch", "one user only"),
    ({"gpu": replace(H100, mig=True)}, "MIGEnabled", "whole GPU"),
    ({"gpu": replace(H100, compute_mode=ComputeMode.EXCLUSIVE_PROCESS)}, "ComputeModeUnsupported", "-c DEFAULT"),
    ({"gpu": replace(H100, compute_mode=ComputeMode.PROHIBITED)}, "ComputeModeUnsupported", "Prohibited"),
    ({"inherited_pipe": "/mps/nvidia.com/gpu/pipe"}, "ForeignMPS", "strategy none"),
    ({"gpu": replace(H100, mps_clients=(4711,))}, "ForeignMPS", "4711"),
    ({"base_problem": "not writable"}, "MPSDirectoryUnusable", "--mps-dir"),
    ({"base": Path("/" + "d" * 80)}, "MPSDirectoryUnusable", "too long"),
    ({"file_system": "nfs4"}, "MPSDirectoryUnusable", "local file system"),
    ({"file_system": "fuse.sshfs"}, "MPSDirectoryUnusable", "local file system"),
]


@pytest.mark.parametrize(("change", "reason", "says"), CASES)
def test_each_refusal_has_its_reason_and_a_remedy(change: dict[str, Any], reason: str, says: str) -> None:
    refused = refusal(replace(GOOD, **change))
    assert refused is not None
    assert refused.reason == reason and says in str(refused)


def test_every_policy_is_covered_above() -> None:
    assert {reason for reason, _ in POLICIES} == {PartitionReason(reason) for _, reason, _ in CASES}


def test_a_good_host_and_one_without_nvml_are_taken() -> None:
    assert refusal(GOOD) is None
    # Without the `utility` capability there is no NVML: the daemon and the probe then tell.
    assert refusal(replace(GOOD, gpu=None)) is None


def test_what_lies_deeper_comes_first() -> None:
    refused = refusal(replace(GOOD, gpu=None, device_files=False, missing_programs=("x",), base_problem="gone"))
    assert refused is not None and refused.reason is PartitionReason.NO_GPU


def test_the_facts_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPE_DIRECTORY, "/somewhere")
    host = look(Programs(control="", server="/bin/true"), None, tmp_path)
    assert host.missing_programs == ("nvidia-cuda-mps-control",)
    assert host.uids == os.getresuid() and host.inherited_pipe == ""
    assert host.base_problem == "" and host.file_system
    assert look(Programs(control="", server=""), None, tmp_path / "no").base_problem == "no directory"


def test_no_process_of_ours_inherits_somebody_elses_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "7")
    monkeypatch.setenv(PIPE_DIRECTORY, "/tmp/nvidia-mps")
    env = surroundings(OUTSIDE_MPS)
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in env
    assert not Path(env[PIPE_DIRECTORY]).exists() and env["PATH"] == os.environ["PATH"]


def test_a_pipe_is_foreign_only_if_a_daemon_listens_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that leads nowhere keeps a process out of MPS: our own resident is started so."""
    monkeypatch.setenv(PIPE_DIRECTORY, str(tmp_path))
    programs = Programs(control="/bin/true", server="/bin/true")
    assert look(programs, None, tmp_path).inherited_pipe == ""
    (tmp_path / "control").touch()
    assert look(programs, None, tmp_path).inherited_pipe == str(tmp_path)


def test_programs_are_found_outside_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node whose runtime mounts the driver's programs into a folder of their own."""
    place = tmp_path / "nvidia" / "570" / "bin"
    place.mkdir(parents=True)
    for name in ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server"):
        (place / name).write_text("#!/bin/sh\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(programs, "PLACES", (f"{tmp_path}/nvidia/*/bin",))
    found = Programs.find()
    assert found.missing == [] and found.control == str(place / "nvidia-cuda-mps-control")
    (place / "nvidia-cuda-mps-server").chmod(0o644)
    assert Programs.find().missing == ["nvidia-cuda-mps-server"]
