"""Rendering, state and cgroup handling of the local cluster, without starting one."""

import errno
import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from localkube import cgroups, debian, lifecycle, pki, render, supervisor
from localkube.errors import ClusterError
from localkube.state import State, start_time

pytestmark = pytest.mark.unit

STATE = State(Path("/state"))


def flags(name: str) -> dict[str, str]:
    argv = next(one.argv for one in render.components(STATE, Path("/tools")) if one.name == name)
    return dict(word.lstrip("-").partition("=")[::2] for word in argv[1:])


def test_only_what_the_api_needs_starts_before_it() -> None:
    order = render.components(STATE, Path("/tools"))
    assert [one.name for one in order if not one.needs_api] == ["etcd", "containerd", "kube-apiserver"]
    assert len({one.name for one in order}) == 8


def test_components_agree_with_each_other() -> None:
    api, manager = flags("kube-apiserver"), flags("kube-controller-manager")
    issued = {one.name: one for one in pki.certificates(render.NODE, render.NODE_IP, render.SERVICE_IP)}
    files = [value for value in (*api.values(), *manager.values()) if value.startswith("/state/pki/")]
    known = {"ca", "service-account", *issued}
    assert {Path(file).stem for file in files} <= known
    assert set(pki.KUBECONFIGS) <= known
    assert f"/CN={api['requestheader-allowed-names']}" == issued["front-proxy"].subject
    assert f"IP:{api['advertise-address']}" in issued["apiserver"].sans
    assert api["service-account-key-file"].replace(".pub", ".key") == manager["service-account-private-key-file"]
    assert api["enable-aggregator-routing"] == "true"
    assert issued["kubelet"].subject == f"/O=system:nodes/CN=system:node:{flags('kubelet')['hostname-override']}"
    service, slice_, _role, binding = render.bootstrap_objects()["items"]  # type: ignore[misc, attr-defined]
    assert [service["spec"]["clusterIP"]] == render.kubelet(STATE, "x")["clusterDNS"]
    assert [port["port"] for port in slice_["ports"]] == [port["port"] for port in service["spec"]["ports"]]
    assert issued["dns"].subject == f"/CN={binding['subjects'][0]['name']}"


def test_kubelet_is_kept_in_the_clusters_own_cgroup() -> None:
    assert render.kubelet(STATE, "semipd-abc")["cgroupRoot"] == "/semipd-abc"
    assert State(Path("/a")).cgroup != State(Path("/b")).cgroup


def test_containerd_configuration_parses() -> None:
    parsed = tomllib.loads(render.containerd(STATE))
    cri = parsed["plugins"]["io.containerd.grpc.v1.cri"]
    assert parsed["root"] == "/state/containerd"
    assert cri["sandbox_image"] == render.PAUSE_IMAGE
    assert cri["restrict_oom_score_adj"] is True
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is False
    assert cri["cni"]["bin_dir"] == "/usr/lib/cni"


def test_plan_survives_its_file(tmp_path: Path) -> None:
    plan = render.Plan(
        root="/state",
        cgroup="semipd-abc",
        keep=["/state"],
        host_sysctls=render.HOST_SYSCTLS,
        network_sysctls=render.NETWORK_SYSCTLS,
        commands=render.network_commands(),
        components=render.components(STATE, Path("/tools")),
        env={"PATH": "/bin"},
    )
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan.to_json()))
    assert supervisor.load_plan(file) == plan


def test_clients_leave_no_caches_and_meet_no_proxy() -> None:
    env = STATE.client_env({"PATH": "/bin", "no_proxy": "example.org", "HTTP_PROXY": "x"})
    assert env["PATH"] == "/state/bin:/bin"
    assert all(env[name].startswith("/state/") for name in ("KUBECONFIG", "KUBECACHEDIR", "HELM_CACHE_HOME"))
    assert env["NO_PROXY"].startswith("example.org,localhost")
    assert render.NODE_IP in env["NO_PROXY"].split(",")


def test_a_recycled_pid_is_not_the_supervisor(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.supervisor_pid() is None
    state.record_supervisor(os.getpid())
    assert state.supervisor_pid() == os.getpid()
    state.supervisor.write_text(json.dumps({"pid": os.getpid(), "start_time": "an earlier boot 1"}))
    assert state.supervisor_pid() is None
    state.supervisor.write_text(json.dumps({"pid": 2**22 + 1, "start_time": start_time(os.getpid())}))
    assert state.supervisor_pid() is None
    with pytest.raises(ClusterError, match="no cluster is up; run `hack/cluster/cluster up`"):
        state.require_supervisor()


def test_status_of_no_cluster(tmp_path: Path) -> None:
    shown = lifecycle.status(State(tmp_path))
    assert (shown.up, shown.healthy, shown.lines) == (False, False, ["cluster: down"])


def test_certificates_verify_and_kubeconfig_is_self_contained(tmp_path: Path) -> None:
    wanted = pki.certificates("node", "10.0.0.1", "10.1.0.1")
    pki.issue(tmp_path / "pki", wanted)
    for one in wanted:
        assert (tmp_path / "pki" / f"{one.name}.crt").exists()
    config = pki.kubeconfig(tmp_path / "pki", "admin", "https://10.0.0.1:6443")
    assert str(tmp_path) not in json.dumps(config)
    assert oct((tmp_path / "pki").stat().st_mode)[-3:] == "700"


HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""


def test_cgroup_versions() -> None:
    assert cgroups.parse_mounts(HYBRID) == cgroups.Hierarchies(
        1,
        (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/memory")),
        (Path("/sys/fs/cgroup/unified"),),
    )
    unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"
    assert cgroups.parse_mounts(unified) == cgroups.Hierarchies(2, (Path("/sys/fs/cgroup"),))
    with pytest.raises(ClusterError, match="no cgroup file system"):
        cgroups.parse_mounts("proc /proc proc rw 0 0\n")


def test_version_1_groups_get_their_cpus(tmp_path: Path) -> None:
    (tmp_path / "cpuset" / "x" / "system").mkdir(parents=True)
    for group, text in (("", "0-3\n"), ("x", "\n"), ("x/system", "")):
        for name in ("cpuset.cpus", "cpuset.mems"):
            (tmp_path / "cpuset" / group / name).write_text(text)
    hierarchies = cgroups.Hierarchies(1, (tmp_path / "cpuset", tmp_path))
    cgroups.create(hierarchies, "x")
    assert (tmp_path / "cpuset" / "x" / "system" / "cpuset.cpus").read_text() == "0-3\n"
    cgroups.join(hierarchies, "x", 42)
    assert (tmp_path / "x" / "system" / "cgroup.procs").read_text() == "42"


def test_version_2_controllers_are_switched_on_and_back(tmp_path: Path) -> None:
    for group in (tmp_path, tmp_path / "x"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
        (group / "cgroup.subtree_control").write_text("memory pids\n")
    control = tmp_path / "cgroup.subtree_control"
    hierarchies = cgroups.Hierarchies(2, (tmp_path,))
    assert cgroups.create(hierarchies, "x") == ["memory", "pids"]
    assert control.read_text() == "+cpuset +cpu"
    for file in (tmp_path / "x").glob("cgroup.*"):
        file.unlink()  # the kernel's files do not keep a group from being removed
    control.write_text("memory pids misc\n")  # runc's doing
    assert cgroups.destroy(hierarchies, "x", ["memory", "pids"]) == []
    assert not (tmp_path / "x").exists()
    assert control.read_text() == "-misc"
    control.write_text("memory misc\n")
    assert cgroups.destroy(hierarchies, "x") == []
    assert control.read_text() == "memory misc\n"  # nobody knows what was on before


def test_a_controller_that_somebody_uses_stays_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchies = cgroups.Hierarchies(2, (tmp_path,))
    (tmp_path / "cgroup.subtree_control").write_text("cpu misc\n")
    written: list[str] = []

    def refuse(number: int) -> Callable[[Path, str], int]:
        def write_text(_: Path, text: str) -> int:
            written.append(text)
            raise OSError(number, "refused")

        return write_text

    monkeypatch.setattr(Path, "write_text", refuse(errno.EBUSY))
    assert cgroups.destroy(hierarchies, "x", []) == []
    assert written == ["-cpu", "-misc"]
    monkeypatch.setattr(Path, "write_text", refuse(errno.EPERM))
    with pytest.raises(PermissionError):
        cgroups.destroy(hierarchies, "x", [])


def test_a_busy_cgroup_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x" / "pod").mkdir(parents=True)
    (tmp_path / "x" / "pod" / "busy").touch()
    left = cgroups.destroy(cgroups.Hierarchies(1, (tmp_path,)), "x", patience_s=0)
    assert left == [tmp_path / "x" / "pod"]


def test_missing_packages_are_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_search_path", lambda: str(tmp_path))
    assert debian.missing_packages(("containerd", "ctr", "runc")) == ["containerd", "runc"]
    with pytest.raises(ClusterError, match="missing Debian packages: runc; run `hack/cluster/cluster deps` as root"):
        debian.require(("runc",))
    (tmp_path / "runc").touch(0o755)
    assert debian.missing_packages(("runc",)) == []
