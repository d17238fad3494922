"""The GPU's telemetry on a stand-in for NVML: facts, samples, Xids, metrics; and what their absence looks like."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.agent_plant import FakeClock
from tests.unit.mps_bench import good_host

from semipd_agent import metrics
from semipd_agent.children import Children
from semipd_agent.gpu.metrics import GpuCollector
from semipd_agent.gpu.sampler import Sampler
from semipd_agent.gpu.telemetry import ComputeMode, TelemetryLost, open_telemetry, visible_gpus
from semipd_agent.gpu.xid import is_hardware
from semipd_agent.partitioner.mps import Mps, Programs
from semipd_agent.reaper import Reaper

pytestmark = pytest.mark.unit
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class Machine:
    def __init__(self, file: Path) -> None:
        self._file = file
        self.set()

    def set(self, **fields: Any) -> None:
        self._file.write_text(json.dumps(fields))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    real = sys.modules.pop("pynvml", None)
    monkeypatch.syspath_prepend(Path(__file__).with_name("nvml_stand_in"))
    importlib.invalidate_caches()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("NVML_STAND_IN", str(tmp_path / "machine.json"))
    yield Machine(tmp_path / "machine.json")
    sys.modules.pop("pynvml", None)
    if real is not None:
        sys.modules["pynvml"] = real


def test_the_stand_in_has_the_names_of_the_real_library(machine: Machine) -> None:
    """Else a call that NVML does not know would pass here."""
    stand_in = {name for name in vars(importlib.import_module("pynvml")) if name.lower().startswith("nvml")}
    spec = importlib.util.find_spec("pynvml", None)
    assert spec is not None and "nvml_stand_in" in str(spec.origin)
    real = next(Path(p) / "pynvml.py" for p in sys.path if "site-packages" in p and (Path(p) / "pynvml.py").exists())
    text = real.read_text()
    # The library makes its error classes (NVMLError_Timeout) from constants (NVML_ERROR_TIMEOUT).
    absent = [n for n in stand_in if not n.startswith("NVMLError_") and not re.search(rf"\b{n}\b", text)]
    assert absent == []
    errors = {re.sub(r"(?<!^)([A-Z])", r"_\1", n.removeprefix("NVMLError_")) for n in stand_in if "Error_" in n}
    assert all(f"NVML_ERROR_{name.upper()}" in text for name in errors)


def test_facts_and_a_sample(machine: Machine) -> None:
    telemetry = open_telemetry()
    assert telemetry is not None
    facts = telemetry.facts()
    assert (facts.uuid, facts.name, facts.driver) == ("GPU-0", "Stand-in H100", "580.1")
    assert (facts.compute_mode, facts.mig, facts.processes, facts.mps_clients) == (ComputeMode.DEFAULT, False, (), ())
    machine.set(compute_mode=3, mig=1, processes=[7], mps_clients=[8, 9], used=5, utilization=50)
    sample = telemetry.sample()
    assert (sample.memory_used, sample.memory_total, sample.utilization) == (5, 80 << 30, 0.5)
    assert (sample.facts.compute_mode, sample.facts.mig) == (ComputeMode.EXCLUSIVE_PROCESS, True)
    assert (sample.facts.processes, sample.facts.mps_clients) == ((7,), (8, 9))


def test_what_a_gpu_does_not_have_is_no_error(machine: Machine) -> None:
    machine.set(mig=None, utilization=None, events=False, xids=[13])
    telemetry = open_telemetry()
    assert telemetry is not None
    sample = telemetry.sample()
    assert not sample.facts.mig and sample.utilization is None and telemetry.xids() == []


def test_the_first_visible_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.set(gpus=4)
    for names, uuid, visible in ((None, "GPU-0", 4), ("2,3", "GPU-2", 2), ("GPU-abc", "GPU-GPU-abc", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names) if names else None
        telemetry = open_telemetry()
        assert telemetry is not None and telemetry.facts().uuid == uuid
        assert visible_gpus() == visible


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_no_gpu_no_telemetry(machine: Machine, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert open_telemetry() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    machine.set(gpus=0)
    assert open_telemetry() is None
    monkeypatch.delenv("NVML_STAND_IN")  # no driver
    assert open_telemetry() is None


def test_xids_are_told_once_and_sorted_by_what_they_mean(machine: Machine) -> None:
    seen: list[int] = []
    sampler = Sampler(open_telemetry(), FakeClock(), seen.append)
    machine.set(xids=[31, 79])
    sampler.look()
    sampler.look()
    assert seen == [31, 79] and sampler.xids == {31: 1, 79: 1}
    assert [is_hardware(xid) for xid in seen] == [False, True]


def test_a_lost_gpu_stops_the_telemetry_and_is_told(machine: Machine) -> None:
    clock = FakeClock()
    lost: list[str] = []
    sampler = Sampler(open_telemetry(), clock, lambda _: None, lost.append)
    sampler.look()
    assert sampler.latest() is not None
    machine.set(lost=True)
    clock.now += 11
    sampler.look()
    sampler.look()
    assert sampler.latest() is None and lost == ["GPU is lost"], "whoever has to know is told once"
    telemetry = open_telemetry()
    assert telemetry is None
    machine.set()
    sampler.look()
    assert sampler.latest() is not None


def families(sampler: Sampler, mps: Mps | None) -> dict[str, Metric]:
    registry = CollectorRegistry()
    registry.register(GpuCollector(sampler, mps))
    return {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}


def exported(sampler: Sampler, mps: Mps | None) -> dict[str, list[tuple[dict[str, str], float]]]:
    return {name: [(s.labels, s.value) for s in f.samples] for name, f in families(sampler, mps).items()}


def test_metrics_are_exactly_the_listed_and_documented_names(machine: Machine, tmp_path: Path) -> None:
    clock = FakeClock()
    sampler = Sampler(open_telemetry(), clock, lambda _: None)
    mps = Mps(Programs("", ""), Children(Reaper()), tmp_path, clock, look=lambda: good_host(tmp_path))
    machine.set(xids=[31], used=5)
    sampler.look()
    shown = exported(sampler, mps)
    assert set(shown) == {name.removesuffix("_total") for name in metrics.GPU_NAMES}
    assert shown["semipd_mps_up"] == [({}, 0.0)]
    assert ({"state": "used"}, 5.0) in shown["semipd_gpu_memory_bytes"]
    assert ({"xid": "31"}, 1.0) in shown["semipd_gpu_xid_errors"]
    assert shown["semipd_gpu_info"][0][0]["compute_mode"] == "Default"
    section = DOCS.read_text().partition("### On a GPU")[2].partition("## Of the operator")[0]
    rows = re.findall(r"^\| `(\S+)` \| (\w+) \| .*? \| (.*) \|$", section, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(metrics.GPU_NAMES)
    for name, kind, text in rows:
        family = families(sampler, mps)[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (kind, text), name


def test_without_nvml_there_are_no_metrics_of_the_gpu_and_no_error(tmp_path: Path) -> None:
    sampler = Sampler(None, FakeClock(), lambda _: None)
    sampler.start()
    assert exported(sampler, None) == {}
    mps = Mps(Programs("", ""), Children(Reaper()), tmp_path, FakeClock(), look=lambda: good_host(tmp_path))
    assert set(exported(sampler, mps)) == {"semipd_mps_up", "semipd_mps_losses", "semipd_gpu_xid_errors"}


def test_a_lost_gpu_is_a_typed_error(machine: Machine) -> None:
    telemetry = open_telemetry()
    assert telemetry is not None
    machine.set(lost=True)
    for call in (telemetry.facts, telemetry.sample, telemetry.xids):
        with pytest.raises(TelemetryLost, match="lost"):
            call()
