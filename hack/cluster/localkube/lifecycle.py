"""`up`, `down` and `status`: everything on the host's side of the cluster."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localkube import cgroups, debian, paths, pki, render, supervisor
from localkube.archive import image_archive
from localkube.errors import ClusterError
from localkube.state import State
from localkube.tools import Tools

_READY_WITHIN_S = 120
_NODE_LINE = (
    '{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].reason}'
    ' {.status.allocatable.cpu} cpu {.status.allocatable.memory}{"\\n"}{end}'
)

_ASKS_DNS = """
import socket, struct, sys
name = b"".join(bytes([len(part)]) + part for part in b"kubernetes.default.svc.cluster.local".split(b".")) + bytes(1)
asks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asks.settimeout(1)
asks.sendto(struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1), (sys.argv[1], 53))
_, flags, _, answers, _, _ = struct.unpack(">6H", asks.recv(512)[:12])
sys.exit(flags & 15 or not answers)
"""
"""A look-up of the API server's own name at the address given: 0 once it is answered."""


def up(state: State) -> bool:
    """Brings the cluster up; False if it was up already. Leaves nothing running if it fails."""
    debian.require_root()
    with exclusively(state):
        if state.supervisor_pid():
            return False
        debian.require(debian.CLUSTER_PROGRAMS)
        tools = Tools().path()
        _tear_down(state)  # what a crash or a reboot left
        progress = _Progress()
        try:
            _write_files(state, tools)
            progress("certificates and configuration written")
            _start(state)
            _wait(state, progress)
        except BaseException:
            _tear_down(state)
            raise
    return True


def down(state: State) -> bool:
    """Ends the cluster and puts the host back; False if there was none."""
    if not state.root.exists():
        return False
    debian.require_root()
    with exclusively(state):
        was_up = state.supervisor_pid() is not None
        _tear_down(state)
    return was_up


@dataclass(frozen=True)
class Status:
    up: bool
    lines: list[str]

    @property
    def healthy(self) -> bool:
        return self.up and not any("DOWN" in line for line in self.lines)


def status(state: State) -> Status:
    """One line per component and per node."""
    if state.supervisor_pid() is None:
        return Status(False, ["cluster: down"])
    lines = [f"cluster: up ({state.root})"]
    with contextlib.suppress(FileNotFoundError):
        for name, shown in json.loads(state.components.read_text()).items():
            if shown["pid"]:
                health = "up"
            elif shown["starts"]:
                health = f"DOWN, exit {shown['exit_code']}, see {state.logs}/{name}.log"
            else:
                health = "DOWN, waits for the API server"
            restarts = f", {shown['starts'] - 1} restarts" if shown["starts"] > 1 else ""
            lines.append(f"  {name:<24} {health}{restarts}")
    if os.geteuid() == 0:
        answer = run(state, ["kubectl", "get", "--raw", "/readyz", "--request-timeout=5s"], check=False)
        lines.append(f"  {'readyz':<24} {answer.stdout.strip() if answer.returncode == 0 else 'DOWN'}")
        template = "-o=jsonpath=" + _NODE_LINE
        nodes = run(state, ["kubectl", "get", "nodes", "--request-timeout=5s", template], check=False)
        lines += [f"  node {line}" for line in nodes.stdout.splitlines()]
    return Status(True, lines)


def run(
    state: State, argv: list[str], *, check: bool = True, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """A short command inside the cluster's namespaces, its output captured. `cluster exec` is for people and tests."""
    pid = state.require_supervisor()
    env = state.client_env(os.environ)
    command = ["nsenter", f"--target={pid}", "--net", "--mount", "--pid", "--", *argv]
    try:
        answer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(argv[:3])}: no answer in {timeout_s} s", f"logs are in {state.logs}") from None
    if check and answer.returncode:
        last = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        raise ClusterError(f"{' '.join(argv[:3])} failed: {last}", f"logs are in {state.logs}")
    return answer


def _write_files(state: State, tools: Path) -> None:
    shutil.rmtree(state.logs, ignore_errors=True)
    for folder in (state.config / "cni", state.logs, state.kubelet, state.containerd, state.root / "pod-logs"):
        folder.mkdir(parents=True)
    state.root.chmod(0o755)
    state.tools.symlink_to(tools)
    pki.issue(state.pki, pki.certificates(render.NODE, render.NODE_IP, render.SERVICE_IP))
    for name in pki.KUBECONFIGS:
        file = state.config / f"{name}.kubeconfig"
        file.write_text(json.dumps(pki.kubeconfig(state.pki, name, render.API_SERVER)))
        file.chmod(0o600)
    _write_json(state.config / "kubelet.json", render.kubelet(state, state.cgroup))
    _write_json(state.config / "audit-policy.json", render.audit_policy())
    _write_json(state.config / "kube-proxy.json", render.kube_proxy(state))
    _write_json(state.config / "cni" / "10-semipd.conflist", render.cni_network())
    _write_json(state.config / "bootstrap.json", render.bootstrap_objects())
    (state.config / "containerd.toml").write_text(render.containerd(state))
    (state.config / "Corefile").write_text(render.corefile(state))
    (state.config / "resolv.conf").write_text("")
    pause = {"pause": (tools / "pause").read_bytes()}
    (state.config / "pause.tar").write_bytes(image_archive(render.PAUSE_IMAGE, pause, ["/pause"]))
    keep = [str(folder) for folder in dict.fromkeys((paths.cache_dir(), state.root, paths.REPOSITORY))]
    plan = render.Plan(
        root=str(state.root),
        cgroup=state.cgroup,
        keep=keep,
        host_sysctls=render.HOST_SYSCTLS,
        network_sysctls=render.NETWORK_SYSCTLS,
        commands=render.network_commands(),
        components=render.components(state, tools),
        env={"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"},
    )
    _write_json(state.plan, plan.to_json())


def _start(state: State) -> None:
    for module in ("overlay", "br_netfilter", "veth", "nf_conntrack", "xt_conntrack", "iptable_nat", "nf_tables"):
        if shutil.which("modprobe"):  # built into some kernels, and then there is nothing to load
            subprocess.run(["modprobe", "-q", module], check=False, capture_output=True)
    before = cgroups.create(cgroups.host_hierarchies(), state.cgroup)
    _write_json(state.undo, {"controllers_before": before})
    state.record_supervisor(supervisor.start(state))


def _wait(state: State, progress: "_Progress") -> None:
    """Until a pod could be created: images, API, node, the default ServiceAccount, kube-proxy's rules, DNS."""
    _until(state, "containerd", lambda: _quiet(state, ["ctr", "version"]))
    run(state, ["ctr", "-n", "k8s.io", "images", "import", "--snapshotter=overlayfs", str(state.config / "pause.tar")])
    _until(state, "kube-apiserver", lambda: _quiet(state, ["kubectl", "get", "--raw", "/readyz"]))
    progress("API server ready")
    _until(
        state, "kube-apiserver", lambda: _quiet(state, ["kubectl", "apply", "-f", str(state.config / "bootstrap.json")])
    )
    waits = (
        ("kubelet", "create", f"node/{render.NODE}", "node registered"),
        ("kubelet", "condition=Ready", f"node/{render.NODE}", "node Ready"),
        ("kube-controller-manager", "create", "serviceaccount/default", "default ServiceAccount there"),
    )
    for component, what, which, text in waits:
        command = ["kubectl", "wait", f"--for={what}", which, "--timeout=20s"]
        _until(state, component, lambda command=command: _quiet(state, command))  # type: ignore[misc]
        progress(text)
    probe = f"import socket; socket.create_connection(({render.SERVICE_IP!r}, 443), 1)"
    _until(state, "kube-proxy", lambda: _quiet(state, [sys.executable, "-c", probe]))
    progress("Services answer")
    _until(state, "coredns", lambda: _quiet(state, [sys.executable, "-c", _ASKS_DNS, render.DNS_IP]))
    progress("names resolve")


def _quiet(state: State, argv: list[str]) -> bool:
    return run(state, argv, check=False).returncode == 0


def _until(state: State, component: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while True:
        if state.supervisor_pid() is None:
            raise ClusterError(
                f"the cluster died while starting: {_last_line(state.logs / 'supervisor.log')}", f"see {state.logs}"
            )
        if done():
            return
        if time.monotonic() > deadline:
            log = state.logs / f"{component}.log"
            raise ClusterError(f"{component} not ready within {_READY_WITHIN_S} s: {_last_line(log)}", f"see {log}")
        time.sleep(0.1)


def _tear_down(state: State) -> None:
    """Kills, then removes. The kernel takes the mounts, bridges and iptables rules with the last process."""
    pid = state.supervisor_pid()
    if pid:
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while state.supervisor_pid() and time.monotonic() < deadline:
            time.sleep(0.02)
    before: list[str] | None = None
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        before = json.loads(state.undo.read_text())["controllers_before"]
    if left := cgroups.destroy(cgroups.host_hierarchies(), state.cgroup, before):
        raise ClusterError(
            f"cgroup {left[0]} is still busy", "look who is in its cgroup.procs, end it, and run `down` again"
        )
    for entry in state.root.iterdir() if state.root.exists() else ():
        if entry == state.logs or entry.name == "lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def exclusively(state: State) -> Iterator[None]:
    """One change of the cluster at a time; the second caller waits."""
    state.root.mkdir(parents=True, exist_ok=True)
    with (state.root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Progress:
    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"cluster: {text}, {time.monotonic() - self._started:.1f} s", file=sys.stderr, flush=True)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return "no log"
    return lines[-1][:300] if lines else "empty log"
