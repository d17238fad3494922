"""The local cluster itself: it runs pods, limits them, routes to them, mends itself, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from e2e.lib.waiting import wait_until
from e2e.tests.conftest import CLUSTER, ENGINE_IMAGE, OPERATOR_IMAGE, Cluster, bring_up
from localkube import cgroups, lifecycle, paths, render
from localkube.state import State

pytestmark = pytest.mark.node


def pod(name: str, image: str, *command: str, **container: Any) -> dict[str, Any]:
    spec = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": list(command), **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [spec]},
    }


def components(state: State) -> dict[str, dict[str, Any]]:
    return dict(json.loads(state.components.read_text()))


def test_status_is_healthy_and_up_is_idempotent(cluster: Cluster) -> None:
    shown = lifecycle.status(cluster.state)
    assert shown.healthy, shown.lines
    assert any(render.NODE in line and "KubeletReady" in line for line in shown.lines)
    before = cluster.state.supervisor_pid()
    assert lifecycle.up(cluster.state) is False
    assert cluster.state.supervisor_pid() == before


def test_exec_is_like_running_the_command(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.exec("sh", "-c", "exit 7", check=False).returncode == 7
    assert cluster.exec("sh", "-c", "kill -TERM $$", check=False).returncode == 128 + signal.SIGTERM
    assert cluster.exec("no-such-command", check=False).returncode == 127
    assert cluster.exec("pwd").stdout.strip() == str(Path.cwd())
    assert cluster.exec("cat", stdin="through the pipe").stdout == "through the pipe"
    version = json.loads(cluster.kubectl("version", "-o", "json"))
    assert version["clientVersion"]["gitVersion"] == version["serverVersion"]["gitVersion"]
    releases = json.loads(cluster.exec("helm", "list", "--all-namespaces", "-o", "json").stdout)
    kept = cluster.kubectl(
        *("get", "secrets", "--all-namespaces", "--selector", "owner=helm,status=deployed"),
        *("-o", "jsonpath={.items[*].metadata.labels.name}"),
    )
    assert sorted(release["name"] for release in releases) == sorted(kept.split()), "helm reached this very cluster"


def test_exec_forwards_signals(cluster: Cluster, tmp_path: Path) -> None:
    caught = tmp_path / "caught"
    script = f"trap 'echo yes > {caught}; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    env = os.environ | {"SEMIPD_RUN": str(cluster.state.root)}
    argv = [sys.executable, str(CLUSTER), "exec", "--", "sh", "-c", script]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, env=env, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.terminate()
    assert child.wait(20) == 3
    assert caught.read_text() == "yes\n"
    child.stdout.close()


def test_a_pod_serves_through_its_service(cluster: Cluster, namespace: str) -> None:
    web = pod(
        "web",
        OPERATOR_IMAGE,
        *("python3", "-m", "http.server", "8000", "--directory", "/opt/semipd/requirements"),
        readinessProbe={"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
        securityContext={"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "runAsNonRoot": True},
    )
    ports = [{"port": 80, "targetPort": 8000}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": ports}}
    service["spec"] |= {"selector": {"app": "web"}, "type": "NodePort"}  # type: ignore[operator]
    cluster.apply(web, service, namespace=namespace)
    cluster.kubectl("wait", "--namespace", namespace, "--for=condition=Ready", "pod/web", "--timeout=120s")
    spec = cluster.get("service", "web", namespace)["spec"]
    urls = [f"http://{spec['clusterIP']}/", f"http://{render.NODE_IP}:{spec['ports'][0]['nodePort']}/"]

    def answers(url: str) -> bool:
        try:
            with cluster.network(), urllib.request.urlopen(url, timeout=2) as answer:
                return b"constraints.txt" in answer.read()
        except OSError:
            return False

    for url in urls:
        wait_until(lambda url=url: answers(url))  # type: ignore[misc]
    assert not answers_outside(urls[0])
    # The pod reaches itself through its own Service (hairpin), and its log is kept.
    fetch = f"import urllib.request as u; print(len(u.urlopen({urls[0]!r}, timeout=5).read()))"
    inside = cluster.kubectl("exec", "--namespace", namespace, "web", "--", "python3", "-c", fetch)
    assert int(inside) > 0
    assert "GET / HTTP/1.1" in cluster.kubectl("logs", "--namespace", namespace, "web")


def answers_outside(url: str) -> bool:
    """Whether the host's own network reaches the cluster's: it must not."""
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except OSError:
        return False
    return True


def test_limits_are_enforced(cluster: Cluster, namespace: str) -> None:
    burn = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    statistics = "/sys/fs/cgroup/cpu/cpu.stat /sys/fs/cgroup/cpu.stat"
    tight = {"limits": {"cpu": "200m", "memory": "64Mi"}}
    throttled = f'python3 -c "{burn}"; cat {statistics} 2>/dev/null || true'
    greedy = "python3", "-c", "bytearray(200 << 20)"
    cluster.apply(
        pod("throttled", OPERATOR_IMAGE, "sh", "-c", throttled, resources=tight),
        pod("greedy", OPERATOR_IMAGE, *greedy, resources=tight),
        namespace=namespace,
    )

    def phase(name: str) -> str:
        return str(cluster.get("pod", name, namespace)["status"]["phase"])

    wait_until(lambda: phase("throttled") == "Succeeded")
    wait_until(lambda: phase("greedy") == "Failed")
    lines = cluster.kubectl("logs", "--namespace", namespace, "throttled").splitlines()
    counts = dict(line.split() for line in lines)
    assert int(counts["nr_throttled"]) > 0
    terminated = cluster.get("pod", "greedy", namespace)["status"]["containerStatuses"][0]["state"]["terminated"]
    # Killed by the kernel; the runtime's word for it may come too late for the kubelet where the machine is busy.
    assert terminated["reason"] == "OOMKilled" or terminated["exitCode"] == 128 + signal.SIGKILL


def test_the_engine_image_imports_torch(cluster: Cluster, namespace: str) -> None:
    script = "import os, torch; print(os.getuid(), torch.arange(4).sum().item())"
    cluster.apply(pod("torch", ENGINE_IMAGE, "python3", "-c", script), namespace=namespace)
    finished = "--for=jsonpath={.status.phase}=Succeeded"
    cluster.kubectl("wait", "--namespace", namespace, finished, "pod/torch", "--timeout=120s")
    assert cluster.kubectl("logs", "--namespace", namespace, "torch").split() == ["10001", "6"]


def test_a_component_that_dies_is_started_again(cluster: Cluster) -> None:
    before = components(cluster.state)["kube-scheduler"]
    cluster.exec("kill", "-9", str(before["pid"]))

    def is_back() -> bool:
        now = components(cluster.state)["kube-scheduler"]
        return now["pid"] is not None and now["starts"] == before["starts"] + 1

    wait_until(is_back)


def host_traces(state: State) -> dict[str, object]:
    """All that a cluster could leave on the host outside its folder."""
    hierarchies = cgroups.host_hierarchies()
    mounts = (*hierarchies.mounts, *hierarchies.bare)
    commands = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(state.root) in command and int(process.name) != os.getpid():
            commands[process.name] = command
    return {
        "processes": commands,
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if str(state.root) in line],
        "cgroups": [str(mount / state.cgroup) for mount in mounts if (mount / state.cgroup).exists()],
        "sysctls": {name: (Path("/proc/sys") / name).read_text() for name in render.HOST_SYSCTLS},
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "kubelet": [str(path) for path in (Path("/var/lib/kubelet"), Path("/var/lib/cni")) if path.exists()],
    }


@pytest.mark.parametrize("end", ["down", "kill"])
def test_nothing_is_left_behind(end: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A second cluster beside the session's: up, a pod, and its end, by `down` or by the death of its supervisor."""
    state = State(paths.cache_dir() / f"cluster-test-{os.getpid()}")
    before = host_traces(state)
    try:
        second, fresh = bring_up(state)
        assert fresh
        assert host_traces(state)["sysctls"] == before["sysctls"]
        second.load(OPERATOR_IMAGE)
        second.apply(pod("sleeper", OPERATOR_IMAGE, "sleep", "1000"), namespace="default")
        second.kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=120s")
        if end == "kill":
            supervisor = state.require_supervisor()
            os.kill(supervisor, signal.SIGKILL)
            wait_until(lambda: state.supervisor_pid() is None)
            assert not lifecycle.status(state).up
    finally:
        lifecycle.down(state)
    assert host_traces(state) == before
    assert sorted(path.name for path in state.root.iterdir()) == ["lock", "logs"]
    assert lifecycle.down(state) is False
    subprocess.run(["rm", "-rf", str(state.root)], check=True)
