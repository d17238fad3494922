"""``make gpu-check`` on what a CUDA image holds, to its end, so that no minute on a GPU is lost to a slip.

The image is a virtual environment of torch, triton and numpy with their dependencies, and nothing else; the rest is in
the wheels. MPS and NVML are stand-ins. An image's own MPS variables and a foreign `tests` package are in the way, as
they may be there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from tests.gpu.archive import NAME, write_archive
from tests.gpu.check.catalogue import PARTS
from tests.gpu.wheels import IMAGE, Closure, fetch, missing
from tests.unit.mps_bench import STAND_IN, stand_ins
from tests.unit.mps_stand_in import SMS

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
CACHE = Path(os.environ.get("SEMIPD_CACHE") or Path.home() / ".cache" / "semipd")


@pytest.fixture(scope="module")
def wheels() -> Path:
    """For this interpreter; fetched once for each set of pins."""
    pins = missing(VERSION)
    folder = CACHE / "gpu-wheels" / f"{VERSION}-{hashlib.sha256(repr(pins).encode()).hexdigest()[:12]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            fetch(VERSION, Path(fresh) / "wheels")
            (Path(fresh) / "wheels").rename(folder)
    return folder


@pytest.fixture(scope="module")
def wheelhouse(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make gpu-wheels` makes, of this tree."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    for wheel in wheels.glob("*.whl"):
        (folder / wheel.name).symlink_to(wheel)
    return write_archive(folder).parent


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a CUDA image: its packages are links to ours."""
    folder = tmp_path_factory.mktemp("image")
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{VERSION}" / "site-packages"
    for name in Closure(VERSION).of(IMAGE):
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "/")}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    (site / "tests").mkdir()
    (site / "tests" / "__init__.py").write_text("raise ImportError('the tests of another project')\n")
    return folder / "bin" / "python"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a machine with stand-ins for MPS and NVML."""
    (tmp_path / "script").write_text("")
    (tmp_path / "machine.json").write_text("{}")
    stand_ins(tmp_path)
    probe = tmp_path / "probe"
    probe.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {STAND_IN} probe "$@"\n')
    probe.chmod(0o755)
    with tempfile.TemporaryDirectory() as short:  # of its own, and not as long as pytest's: sockets are made there
        yield {
            "TMPDIR": short,
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT / "tests" / "unit" / "nvml_stand_in"),
            "NVML_STAND_IN": str(tmp_path / "machine.json"),
            "STAND_IN_SCRIPT": str(tmp_path / "script"),
            "CUDA_MPS_PIPE_DIRECTORY": "/nonexistent/of-the-image",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "7",
            "OMP_NUM_THREADS": "1",
        }


def parts(out: Path) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in json.loads((out / "report.json").read_text())["parts"]}


def check(
    python: Path | str, *flags: str, out: Path, env: dict[str, str], archive: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """From the tree, or from an archive in a folder that is not the tree's."""
    what = ["-m", "tests.gpu.check"] if archive is None else [str(archive)]
    command = [str(python), *what, "--out", str(out), *flags]
    where = ROOT if archive is None else out.parent
    return subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=1700)


def test_an_image_and_the_wheelhouse_are_enough(
    image: Path, wheelhouse: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    """No repository, and nothing but what an image holds: the dry run to its end."""
    out = tmp_path / "out"
    flags = ("--device", "cpu", "--mps-probe", str(tmp_path / "probe"), "--patience", "20")
    done = check(image, *flags, out=out, env=machine, archive=wheelhouse / NAME)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    found = parts(out)
    assert {name: part["outcome"] for name, part in found.items()} == dict.fromkeys(
        ("machine", "mps", "kernels", "rungs", "switches", "large-8B", "shares", "goodput", "kills"), "ok"
    )
    assert found["mps"]["figures"]["rungs"]["counts"]["60"] == 78 and found["mps"]["figures"]["rungs"]["total"] == SMS
    assert {w["SMs"] for w in found["kills"]["figures"]["workers"]} == {SMS}
    assert found["kills"]["figures"]["tokens compared"] == 8 * 48
    products = found["rungs"]["figures"]["matrix products of one client"]
    assert [(row["SMs by probe"], row["SMs in torch"], row["wrong"]) for row in products] == [
        (26, 26, ""),
        (132, 132, ""),
    ]
    switches = found["switches"]["figures"]["switches under load"]
    assert [(row["switch"], row["gaps"] > 0) for row in switches] == [
        ("no switch: 60/100", True),
        ("warm: 100/100", True),
    ]
    moves = found["switches"]["figures"]["moves, one after the other"]
    assert [(row["move"], row["moves"]) for row in moves] == [("cold", 1), ("warm", 1)]
    assert [row["prefill %"] for row in found["shares"]["figures"]["a token's gap beside prompts"]] == [100, 100]
    steps = found["large-8B"]["figures"]["steps"]
    assert [(row["step"], row["ms"] > 0) for row in steps] == [
        ("decode 1", True),
        ("decode 4", True),
        ("prefill 64", True),
    ]
    modes = found["goodput"]["figures"]["goodput by mode"]
    names = ["one process, steps of 64", "both on the whole device", "Auto, as it begins", "Auto"]
    assert [row["mode"] for row in modes] == names and len({row["requests"] for row in modes}) == 1
    assert modes[0]["requests"] > 0 and all(row["met both"] <= row["requests"] for row in modes)
    assert len(found["kernels"]["figures"]["decode attention"]) == 1
    ends = found["kills"]["figures"]["after each end"]
    assert [row["end"] for row in ends] == ["kill -9", "terminate_client"]
    assert {row["tokens equal"] for row in ends} == {8 * 48} and {row["MPS server"] for row in ends} == {"ACTIVE"}
    assert "| terminate_client |" in (out / "report.md").read_text()
    assert list(Path(machine["TMPDIR"]).glob("mps-*/*/p/control")) == []


def test_without_a_gpu_each_part_says_so_in_one_line_and_nothing_fails(
    wheelhouse: Path, image: Path, tmp_path: Path
) -> None:
    """As a stranger begins: no repository, no torch needed for the word, and no stand-ins."""
    probe, out = tmp_path / "probe.py", tmp_path / "out"
    probe.write_text("raise SystemExit('it is not asked')")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    flags = ("--probe", str(probe), "--smollm2", str(tmp_path), "--patience", "20")
    done = check(image, *flags, out=out, env=env, archive=wheelhouse / NAME)
    assert done.returncode == 3 and done.stderr == "", done.stderr
    found = parts(out)
    assert list(found) == [part.name for part in PARTS]
    assert {(part["outcome"], part["problem"][:8], "\n" in part["problem"]) for part in found.values()} == {
        ("no GPU", "no GPU: ", False)
    }
    report = json.loads((out / "report.json").read_text())
    assert {row["verdict"] for row in report["promised"] + report["predicted"]} == {"not measured"}
    assert found["machine"]["figures"]["packages that load"] > 40, "each wheel's"
    assert list(tmp_path.glob("gpu-check-*")) == [], "nothing is left behind"


def test_what_is_not_here_is_named(image: Path, wheelhouse: Path, tmp_path: Path) -> None:
    """An image whose wheels were forgotten."""
    (tmp_path / NAME).write_bytes((wheelhouse / NAME).read_bytes())
    out, env = tmp_path / "out", {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = check(image, "--device", "cpu", "--only", "machine", out=out, env=env, archive=tmp_path / NAME)
    assert done.returncode == 1
    problem = parts(out)["machine"]["problem"]
    assert "not here: msgspec" in problem and "torch," not in problem and "--wheels" in problem


ROWS = '[{"section": "env"}, {"section": "mps", "error": "no programs found"}]'
PROBE = f"""
import os, subprocess, sys, time
out = sys.argv[sys.argv.index("--out") + 1]
with open(out, "w") as file:
    file.write('{ROWS}')
if os.path.exists(os.environ["HANG"]):
    child = subprocess.Popen(["sleep", "600"])
    open(os.environ["HANG"], "w").write(str(child.pid))
    time.sleep(600)
"""


def test_a_part_that_hangs_is_ended_with_its_children_and_keeps_what_it_saw(tmp_path: Path) -> None:
    """And `--resume` begins where it was left."""
    probe, hang, out = tmp_path / "probe.py", tmp_path / "hang", tmp_path / "out"
    probe.write_text(PROBE)
    hang.write_text("")
    env = os.environ | {"HANG": str(hang)}
    flags = ("--only", "probe", "--probe", str(probe))
    done = check(sys.executable, "--device", "cpu", *flags, "--patience", "0.05", "--budget", "6000", out=out, env=env)
    assert done.returncode == 1
    part = parts(out)["probe"]
    assert part["outcome"] == "timed out" and part["figures"]["rows"] == 2
    assert part["figures"]["rows with an error"] == ["mps: no programs found"]
    child = Path(f"/proc/{hang.read_text()}/cmdline")
    assert not child.exists() or not child.read_bytes(), "its group ended with it"
    hang.unlink()
    assert check(sys.executable, "--device", "cpu", *flags, "--resume", out=out, env=env).returncode == 0
    probe.write_text("raise SystemExit('it is not asked')")
    done = check(sys.executable, "--device", "cpu", *flags, "--resume", out=out, env=env)
    assert done.returncode == 0 and "probe: ok already" in done.stdout


def test_what_does_not_fit_is_skipped_and_the_kills_have_their_time(tmp_path: Path) -> None:
    done = check(
        sys.executable,
        "--device",
        "cpu",
        "--only",
        "switches,large-8B",
        "--budget",
        "100",
        out=tmp_path,
        env=dict(os.environ),
    )
    assert done.returncode == 3, "nothing ran, so nothing was shown"
    assert {part["outcome"] for part in parts(tmp_path).values()} == {"skipped"}
    assert "too few" in parts(tmp_path)["large-8B"]["problem"]


def test_without_mps_it_says_why_and_goes_on(tmp_path: Path) -> None:
    flags = ("--only", "mps,rungs", "--patience", "20")
    done = check(sys.executable, "--device", "cpu", *flags, out=tmp_path, env=dict(os.environ))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = parts(tmp_path)
    assert (found["mps"]["outcome"], found["mps"]["problem"]) == ("skipped", "a dry run on the CPU")
    assert found["rungs"]["outcome"] == "ok"


def test_the_wheels_are_those_that_an_image_lacks_in_the_versions_that_are_pinned() -> None:
    """For the interpreter of a CUDA image, whichever runs here."""
    pins = missing("3.12")
    names = {pin.split("==")[0] for pin in pins}
    assert {"msgspec", "pydantic-core", "setproctitle", "uvicorn", "gguf", "pytest", "transformers"} <= names
    assert not {"torch", "triton", "numpy", "jinja2"} & names and not any(name.startswith("nvidia-c") for name in names)
    text = (ROOT / "constraints.txt").read_text()
    assert all(f"\n{pin}" in text for pin in pins)
