"""`semipd-engine profile` with the processes that serve, on a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from e2e.lib.models import random_model
from semipd_agent.slo.profiles import learned
from semipd_agent.slo.step_model import ShareLaw, StepModel
from semipd_engine.contract import Phase, read_profile
from semipd_engine.process import REFUSED
from semipd_engine.profiler.sweep import SPLITS

pytestmark = pytest.mark.engine
PROFILE = (sys.executable, "-m", "semipd_engine.cli", "profile")


def test_it_measures_both_phases_alone_and_side_by_side_under_every_split(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    small = ["--max-model-len", "160", "--max-num-seqs", "9", "--kv-cache-memory", str(32 << 20)]
    ended = subprocess.run(
        [*PROFILE, str(random_model("llama", "tiny")), "--device", "cpu", "--out", str(file), *small],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "profile:" in ended.stderr, "its progress bar"
    found = read_profile(file)
    assert found.key.device == "cpu" and found.key.kernels and found.key.weight_bytes > 0 and found.machine
    seen = {(t.split.prefill, t.split.decode) for t in found.steps if t.phase is Phase.DECODE}
    assert seen == set(SPLITS)
    for phase in Phase:
        steps = [t for t in found.steps if t.phase is phase]
        assert sum(t.alone_seconds for t in steps) > 0 and sum(t.shared_seconds for t in steps) > 0
        assert len({t.batch for t in steps}) > 1
    profile = learned(found, ShareLaw.PACED)
    assert profile.measured and all(StepModel(profile).costs(phase)[0] > 0 for phase in Phase)
    left = [
        p.info["cmdline"]
        for p in psutil.process_iter(["cmdline"])
        if "semipd-profile-" in " ".join(p.info["cmdline"] or ())
    ]
    assert left == [], "its processes end with it"


@pytest.mark.parametrize(("flag", "given"), [("--max-num-seqs", "0"), ("--max-model-len", "-4")])
def test_an_option_that_cannot_be_is_one_line(flag: str, given: str, tmp_path: Path) -> None:
    asked = [*PROFILE, str(random_model("llama", "tiny")), "--out", str(tmp_path / "p.json"), flag, given]
    ended = subprocess.run(asked, capture_output=True, text=True)
    assert ended.returncode == REFUSED and ended.stderr.count("\n") == 1
    assert f"semipd-engine profile: {flag} {given}: Input should be greater than or equal to" in ended.stderr


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    for model, out, words in (
        (tmp_path / "none", tmp_path / "p.json", "none is no directory"),
        (random_model("llama", "tiny"), tmp_path / "no" / "p.json", "there is no folder"),
        (random_model("llama", "tiny"), tmp_path, "is a folder; name a file in it"),
        (random_model("llama", "tiny"), Path("/proc/p.json"), "nothing can be written into /proc"),
    ):
        ended = subprocess.run([*PROFILE, str(model), "--out", str(out)], capture_output=True, text=True)
        assert ended.returncode == REFUSED and words in ended.stderr and ended.stderr.count("\n") == 1
