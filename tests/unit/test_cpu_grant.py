"""The CPUs that a container grants: what the quota and the mask say, and that everyone who counts CPUs goes by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from semipd_engine import cpu_grant
from semipd_engine.contract import EngineOptions, PartitionPlan
from semipd_engine.core import __main__ as core
from semipd_engine.cpu_grant import Grant, cpu_quota, granted
from semipd_engine.profiler.processes import Processes

pytestmark = pytest.mark.unit

V2 = "0::/kubepods/pod1/c1\n"
V1 = "4:cpu,cpuacct:/kubepods/pod1/c1\n3:cpuset:/kubepods/pod1/c1\n"


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("files", "cgroup", "quota"),
    [
        ({}, V2, None),
        ({"cpu.max": "max 100000\n"}, V2, None),
        ({"cpu.max": "150000 100000\n"}, V2, 1.5),  # a namespace: our own cgroup is the mount's root
        ({"kubepods/pod1/cpu.max": "200000 100000\n", "kubepods/pod1/c1/cpu.max": "max 100000\n"}, V2, 2.0),
        ({"kubepods/pod1/cpu.max": "50000 100000\n", "kubepods/pod1/c1/cpu.max": "300000 100000\n"}, V2, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, None),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, 2.5),
        (
            {
                "cpu,cpuacct/kubepods/pod1/c1/cpu.cfs_quota_us": "100000\n",
                "cpu,cpuacct/kubepods/pod1/c1/cpu.cfs_period_us": "50000\n",
            },
            V1,
            2.0,
        ),
        ({"cpu.max": "rubbish\n"}, V2, None),
    ],
)
def test_quota_of_both_cgroup_versions(tmp_path: Path, files: dict[str, str], cgroup: str, quota: float | None) -> None:
    for path, text in files.items():
        put(tmp_path, f"sys/fs/cgroup/{path}", text)
    assert cpu_quota(tmp_path, cgroup) == quota


@pytest.mark.parametrize(
    ("quota", "count"), [("max", 8), ("50000", 1), ("125000", 1), ("150000", 2), ("200000", 2), ("9900000", 8)]
)
def test_granted_cpus_are_the_quota_rounded_within_the_mask(tmp_path: Path, quota: str, count: int) -> None:
    put(tmp_path, "sys/fs/cgroup/cpu.max", f"{quota} 100000\n")
    grant = granted("uid", affinity=frozenset(range(4, 12)), root=tmp_path, cgroup=V2)
    assert len(set(grant.cpus)) == count
    assert set(grant.cpus) <= set(range(4, 12))


def test_pods_of_one_node_spread_over_its_cpus(tmp_path: Path) -> None:
    put(tmp_path, "sys/fs/cgroup/cpu.max", "200000 100000\n")
    mask = frozenset(range(16))
    runs = {granted(f"pod-{i}", affinity=mask, root=tmp_path, cgroup=V2).cpus for i in range(40)}
    assert len(runs) > 8
    assert granted("pod-1", affinity=mask, root=tmp_path, cgroup=V2) == granted(
        "pod-1", affinity=mask, root=tmp_path, cgroup=V2
    )


def test_this_process_has_cpus() -> None:
    import os

    assert set(granted().cpus) <= os.sched_getaffinity(0) and granted().cpus


@pytest.mark.parametrize(
    ("grant", "throttled"),
    [
        (Grant((0, 1)), None),
        (Grant((0, 1), 2.0), None),
        (Grant((0, 1), 1.5), 1.5),
        (Grant((0,), 1.25), None),
        (Grant((0,), 0.5), 0.5),
        (Grant((0, 1), 8.0), None),
    ],
)
def test_a_quota_below_the_cpus_stops_them(grant: Grant, throttled: float | None) -> None:
    assert grant.throttled == throttled


# ---- those who count them --------------------------------------------------------------------------------------------


@pytest.fixture
def of_1500m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pod with limits.cpu 1500m on a node with 8 CPUs, as its processes see it."""
    put(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    monkeypatch.setattr(cpu_grant, "cpu_quota", lambda *_: cpu_quota(tmp_path, V2))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def test_an_engine_without_an_agent_starts_on_what_its_quota_grants(
    of_1500m: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[PartitionPlan] = []

    class Core:
        def __init__(self, options: EngineOptions, run_dir: Path, plan: PartitionPlan) -> None:
            plans.append(plan)

        def run(self) -> None: ...

    monkeypatch.setattr(core, "EngineCore", Core)
    for name in ("setproctitle", "gc.freeze", "signal.signal"):  # of this process they are none of core's business
        monkeypatch.setattr(f"semipd_engine.core.__main__.{name}", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["core", "--model", str(of_1500m), "--run-dir", str(of_1500m)])
    assert core.main() == 0
    (plan,) = plans
    assert len(plan.granted_cpus) == plan.threads == 2


def test_a_profile_is_measured_under_what_the_quota_grants(of_1500m: Path) -> None:
    grant = Processes(EngineOptions(model=of_1500m, run_dir=of_1500m), {}).grant
    assert (len(grant.cpus), grant.throttled) == (2, 1.5)
