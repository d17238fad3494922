"""The doctor: each row's grade on made-up machines, this machine, the exit status, and a trial on stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.mps_bench import H100, good_host

from semipd_agent.doctor.checks import Grade, Row, examine
from semipd_agent.doctor.command import doctor, table
from semipd_agent.doctor.machine import Machine, this_machine
from semipd_agent.gpu.telemetry import ComputeMode
from semipd_agent.partitioner import Grant
from semipd_cli.__main__ import command
from semipd_engine.contract import Device

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
HOST = good_host(Path("/run/spd"))
GOOD = Machine(
    host=HOST,
    grant=Grant(cpus=(0, 1, 2, 3), quota=4.0),
    cpu_flags=frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
    shm_bytes=2 << 30,
    open_files=65536,
    default_daemon=False,
)


def row(machine: Machine, check: str, device: Device = Device.AUTO) -> Row:
    return next(row for row in examine(machine, device) if row.check == check)


def test_a_good_machine_is_ok_throughout() -> None:
    rows = examine(GOOD, Device.CUDA)
    assert {row.grade for row in rows} == {Grade.OK}
    assert len({row.check for row in rows}) == len(rows) == 13


def host(**changes: Any) -> dict[str, Any]:
    return {"host": replace(HOST, **changes)}


@pytest.mark.parametrize(
    ("change", "check", "grade", "says"),
    [
        (host(gpu=None), "GPU and driver", "warn", "compute,utility"),
        (host(gpu=None), "MIG", "warn", "NVML"),
        (host(missing_programs=("nvidia-cuda-mps-server",)), "MPS programs", "fail", "container toolkit"),
        (host(gpu=replace(H100, mig=True)), "MIG", "fail", "whole GPU"),
        (host(gpu=replace(H100, compute_mode=ComputeMode.EXCLUSIVE_PROCESS)), "compute mode", "fail", "-c DEFAULT"),
        (host(gpu=replace(H100, processes=(7, 8))), "other tenants", "warn", "PID 7, 8"),
        (host(gpu=replace(H100, mps_clients=(9,))), "other MPS daemon", "fail", "ForeignMPS"),
        (host(inherited_pipe="/x"), "other MPS daemon", "fail", "strategy none"),
        ({"default_daemon": True}, "other MPS daemon", "warn", "/tmp/nvidia-mps"),
        (host(uids=(1, 0, 0)), "user id", "fail", "one user"),
        (host(base_problem="not writable"), "MPS directory", "fail", "--mps-dir"),
        ({"shm_bytes": 64 << 20}, "/dev/shm", "warn", "--shm-size"),
        ({"shm_bytes": 0}, "/dev/shm", "warn", "0 MiB"),
        ({"open_files": 1024}, "open files", "warn", "ulimit"),
        ({"grant": Grant()}, "CPU grant", "fail", "cpuset"),
        ({"grant": Grant((0,), 1.0)}, "CPU grant", "warn", "two CPUs"),
        ({"grant": Grant((0, 1), 1.5)}, "CPU grant", "warn", "whole CPUs"),
        ({"cpu_flags": frozenset({"avx2"})}, "CPU vectors", "ok", "AVX2"),
        ({"cpu_flags": frozenset({"sse2"})}, "CPU vectors", "warn", "no AVX2"),
        ({"cpu_flags": frozenset()}, "CPU vectors", "warn", "x86"),
        ({"cpu_flags": frozenset({"avx2"})}, "CPU bfloat16", "warn", "float32"),
        ({"cpu_flags": frozenset({"avx512_bf16"})}, "CPU bfloat16", "ok", "AVX-512 BF16"),
    ],
)
def test_what_is_wrong_has_its_grade_and_a_remedy(change: dict[str, Any], check: str, grade: str, says: str) -> None:
    found = row(replace(GOOD, **change), check)
    assert found.grade == grade and says in f"{found.found} {found.remedy}"
    assert found.remedy or found.grade == "ok" or "NVML" in found.found


def test_no_gpu_is_a_failure_only_where_one_is_asked_for() -> None:
    bare = replace(GOOD, host=replace(HOST, gpu=None, device_files=False, missing_programs=("a", "b")))
    assert row(bare, "GPU and driver", Device.CUDA).grade == "fail"
    assert row(bare, "GPU and driver", Device.AUTO).grade == "warn"
    assert not any(r.check.startswith("MPS") for r in examine(bare, Device.AUTO)), "nothing more to say of MPS"
    assert not any(r.check.startswith("GPU") for r in examine(bare, Device.CPU))


def test_this_machine(tmp_path: Path) -> None:
    machine = this_machine(tmp_path)
    assert machine.grant.cpus and machine.shm_bytes >= 0 and machine.open_files
    assert "cpu" not in {r.found for r in examine(machine, Device.AUTO)}


def test_the_table_has_a_line_for_each_row_and_the_remedy_below() -> None:
    text = table([Row("a", Grade.OK, "well"), Row("bcd", Grade.FAIL, "ill", "do this")])
    assert text.splitlines() == ["ok    a    well", "fail  bcd  ill", "           -> do this"]


def test_exit_status_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as on a machine without a GPU, wherever this runs
    assert doctor(["--device", "cpu"]) == 0
    assert "CPU grant" in capsys.readouterr().out
    monkeypatch.setattr("semipd_agent.doctor.command.this_machine", lambda _: replace(GOOD, grant=Grant()))
    assert doctor(["--device", "cpu", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert {"check": "CPU grant", "grade": "fail"}.items() <= rows[0].items()


def test_semipd_doctor_is_the_agents(capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["doctor", "--device", "cpu"]) == 0
    assert "CPU vectors" in capfd.readouterr().out
    assert command(["doctor", "--nonsense"]) == 2


TRY = """
import sys
from pathlib import Path
from semipd_agent.doctor.trial import try_mps
from tests.unit.mps_bench import stand_ins
row = try_mps(stand_ins(Path(sys.argv[1])), Path(sys.argv[2]))
print(row.grade, row.found, sep="|")
"""


@pytest.mark.parametrize(
    ("fault", "grade", "says"),
    [
        ("", "ok", "60 %: 78"),
        ("probe: answer late", "ok", "(once it has a context)"),
        ("probe: answer unlimited", "fail", "no effect"),
        ("start: refuse", "fail", "already running"),
    ],
)
def test_the_trial_measures_every_rung_and_leaves_nothing(tmp_path: Path, fault: str, grade: str, says: str) -> None:
    """In a process of its own: the trial collects every child there is."""
    (tmp_path / "script").write_text(fault)
    with tempfile.TemporaryDirectory(prefix="spd") as base:
        done = subprocess.run(
            [sys.executable, "-c", TRY, str(tmp_path), base],
            env={"STAND_IN_SCRIPT": str(tmp_path / "script"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{grade}|") and says in done.stdout
        assert list(Path(base).iterdir()) == []
