"""A call of the check: its flags, folder, wheels and records; what it says where something is wrong with them.

The check itself runs, as a process; its parts are a program in the probe's place.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.gpu.archive import write_archive
from tests.gpu.check.circumstances import circumstances, settle
from tests.gpu.check.packages import load, modules
from tests.gpu.check.surroundings import no_bytecode_left

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import sys
open(sys.argv[sys.argv.index("--out") + 1], "w").write('[{"section": "env"}]')
"""


def check(out: Path, *flags: str | Path, code: tuple[str, ...] = ("-m", "tests.gpu.check")) -> Any:
    """Where no GPU is to be seen."""
    command = [sys.executable, *code, "--out", str(out), *map(str, flags)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def one_line(done: Any, *words: str) -> None:
    """Refused, in a line that says what and how to mend it."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr


def parts(out: Path) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in json.loads((out / "report.json").read_text())["parts"]}


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.py"
    path.write_text(PROBE)
    return path


def wheel(folder: Path, name: str, **files: str) -> Path:
    """One of a package whose files are those of the keywords."""
    folder.mkdir(exist_ok=True)
    path, info = folder / name, "-".join(name.split("-")[:2]) + ".dist-info"
    package = name.partition("-")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{package}/{file}.py", text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        archive.writestr(f"{info}/RECORD", "".join(f"{package}/{file}.py,,\n" for file in files))
    return path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--only", "probe"), "--only probe needs --probe FILE"),
        (("--only", "machine,exact-smollm2"), "--only exact-smollm2 needs --smollm2 DIR"),
        (("--only", "nothing"), "no part nothing"),
        (("--budget", "0"), "--budget: must be above 0"),
        (("--budget", "-5"), "--budget: must be above 0"),
        (("--patience", "0"), "--patience: must be above 0"),
        (("--patience", "nan"), "--patience: must be above 0"),
        (("--probe", "no-such-probe"), "--probe: nothing at no-such-probe"),
    ],
)
def test_a_flag_that_lets_nothing_run_is_refused_by_name(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = check(tmp_path / "out", *flags)
    assert done.returncode == 2 and said in done.stderr and not (tmp_path / "out").exists()


def test_wheels_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "wheels"
    one_line(check(out, "--wheels", folder), f"no folder {folder}", "make gpu-wheels")
    wheel(folder, "good-1-py3-none-any.whl", __init__="")
    other = wheel(folder, "other-1-cp27-cp27m-manylinux2014_x86_64.whl", __init__="")
    here = f"PYTHON_THERE={sys.version_info.major}.{sys.version_info.minor}"
    one_line(check(out, "--wheels", folder), other.name, here)
    other.unlink()
    broken = wheel(folder, "broken-1-py3-none-any.whl", __init__="")
    broken.write_bytes(broken.read_bytes()[:-30])
    one_line(check(out, "--wheels", folder), broken.name, "not a whole wheel")


def test_a_run_without_a_gpu_loads_each_package_of_the_wheels(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "wheels"
    flags = ("--only", "machine", "--wheels", folder)
    wheel(folder, "good-1-py3-none-any.whl", __init__="")
    assert check(out, *flags).returncode == 3
    assert parts(out)["machine"]["figures"] == {"packages that load": 1}
    wheel(folder, "bad-1-py3-none-any.whl", __init__="from good import what_is_not_there")
    assert check(out, *flags).returncode == 1
    found = parts(out)["machine"]
    assert found["outcome"] == "failed" and "bad: ImportError: cannot import name 'what_is" in found["problem"]


def test_what_the_images_own_packages_hold_up_is_no_fault_of_the_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path, "leans_on_torch-1-py3-none-any.whl", __init__="raise ModuleNotFoundError(name='torch')")
    wheel(tmp_path, "leans_on_none-1-py3-none-any.whl", __init__="raise ModuleNotFoundError('no', name='none')")
    for path in tmp_path.glob("*.whl"):
        zipfile.ZipFile(path).extractall(tmp_path / "unpacked")
    monkeypatch.syspath_prepend(tmp_path / "unpacked")
    assert modules(tmp_path / "unpacked") == ["leans_on_none", "leans_on_torch"]
    assert load(modules(tmp_path / "unpacked")) == (0, ["leans_on_none: ModuleNotFoundError: no"])


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    one_line(check(out, "--only", "machine"), str(out), "--out DIR")


def test_an_older_python_gets_one_line() -> None:
    old = "import runpy, sys; sys.version_info = (3, 10, 9); "
    runs = {
        "import tests; runpy.run_module('tests.gpu.check', run_name='__main__', alter_sys=True)": "__main__.py",
        "runpy.run_path('tests/gpu/unpack.py', run_name='__main__')": "../unpack.py",
    }
    for run, file in runs.items():
        done = check(Path("unused"), code=("-c", old + run))
        assert done.returncode != 0 and done.stderr.startswith("gpu-check: needs Python 3.11 or newer"), done.stderr
        assert done.stderr.count("\n") == 1
        ast.parse((ROOT / "tests" / "gpu" / "check" / file).read_text(), feature_version=(3, 7))


def test_make_passes_a_folder_with_blanks_as_one(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    command = ["make", "gpu-check", "VENV=none", f"PYTHON={python}", "WHEELS=my wheels", "PROBE=my probe"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[-4:] == ["--wheels", "my wheels", "--probe", "my probe"]


def test_the_archive_speaks_of_itself(tmp_path: Path) -> None:
    done = check(tmp_path, "--help", code=(str(write_archive(tmp_path)),))
    assert done.returncode == 0 and "usage: gpu-check.pyz " in done.stdout and "folder of the report; " in done.stdout
    assert "tests.gpu.check" not in done.stdout


def test_only_some_parts_leave_the_others_records_in_the_report(probe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert check(out, "--device", "cpu", "--only", "probe", "--probe", probe).returncode == 0
    done = check(out, "--device", "cpu", "--only", "switches", "--budget", "100")
    assert done.returncode == 3, "an earlier call's success is not this one's"
    found = parts(out)
    assert {name: (part["outcome"], part["of an earlier call"]) for name, part in found.items()} == {
        "probe": ("ok", True),
        "switches": ("skipped", False),
    }
    assert found["probe"]["figures"]["rows"] == 1 and "| of an earlier call |" in (out / "report.md").read_text()


def test_nothing_is_taken_over_from_another_device(probe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert check(out, "--device", "cpu", "--only", "probe", "--probe", probe).returncode == 0
    done = check(out, "--only", "probe", "--probe", probe, "--resume")
    assert done.returncode == 3 and parts(out)["probe"]["outcome"] == "no GPU"
    assert "device cpu, not cuda" in done.stdout and "ok already" not in done.stdout
    assert "exit status 3: nothing was shown" in done.stdout, "make tells nobody which"
    assert parts(out / "earlier-1")["probe"]["outcome"] == "ok", "what a run has cost is not lost"


def test_a_folder_holds_one_device_commit_and_set_of_versions(tmp_path: Path) -> None:
    now = {"device": "cuda", "commit": "1", "torch": "2.9", "GPU": "NVIDIA L4"}
    assert settle(tmp_path, now) == ""
    (tmp_path / "parts" / "machine.json").write_text("mine")
    (tmp_path / "notes").write_text("somebody's")
    assert settle(tmp_path, now) == "" and (tmp_path / "parts" / "machine.json").exists()
    for number, (name, value) in enumerate({"commit": "2", "torch": "2.10", "GPU": "NVIDIA L40S"}.items(), 1):
        before, now = now, now | {name: value}
        assert f"{name} {before[name]}, not {value}: it is in {tmp_path}/earlier-{number}" in settle(tmp_path, now)
        assert list((tmp_path / "parts").iterdir()) == []
    assert (tmp_path / "earlier-1" / "parts" / "machine.json").read_text() == "mine"
    assert (tmp_path / "notes").exists()


def test_the_driver_and_the_card_are_told_without_asking_the_driver(tmp_path: Path) -> None:
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ:   \t\t 70\n")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n")
    found = circumstances("cuda", driver=tmp_path)
    assert (found["driver"], found["GPU"]) == ("580.65.06", "NVIDIA L4")
    none = circumstances("cuda", driver=tmp_path / "none")
    assert (none["driver"], none["GPU"], none["torch"] == found["torch"]) == ("not here", "not here", True)


def test_a_clone_is_left_without_new_bytecode(tmp_path: Path) -> None:
    before, fresh = tmp_path / "engine" / "__pycache__", tmp_path / "tests" / "gpu" / "__pycache__"
    before.mkdir(parents=True)
    with no_bytecode_left(tmp_path):
        fresh.mkdir(parents=True)
        (fresh / "part.pyc").write_text("")
    assert before.exists() and not fresh.exists()
