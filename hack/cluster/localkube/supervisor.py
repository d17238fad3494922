"""PID 1 of the cluster's namespaces: mounts, network, then keeps the components running until it is killed.

Everything it sets up lives in its namespaces, so its death is the teardown. It knows no Kubernetes beyond
"some components wait until the API server is ready"; names, flags and addresses come from the plan.
"""

import json
import os
import resource
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from ssl import create_default_context

from localkube import cgroups, namespaces
from localkube.render import API_SERVER, Component, Plan
from localkube.state import State, write_atomically

_WAKE_UP = {signal.SIGCHLD, signal.SIGTERM}
_RESTART_AFTER_S = 1.0


@dataclass
class _Running:
    component: Component
    pid: int | None = None
    starts: int = 0
    start_at: float = 0.0
    exit_code: int | None = None


def load_plan(path: Path) -> Plan:
    raw = json.loads(path.read_text())
    return Plan(**raw | {"components": [Component(**component) for component in raw["components"]]})


def prepare_mounts(plan: Plan, state: State) -> None:
    """Own /proc and /run, a throw-away /var over the host's; the folders in `plan.keep` stay the real ones."""
    namespaces.mount("none", Path("/"), flags=namespaces.MS_REC | namespaces.MS_PRIVATE)
    namespaces.mount("proc", Path("/proc"), "proc")
    # Held open, since a kept folder below /run or /var is about to be covered.
    kept = [(Path(path), os.open(path, os.O_PATH)) for path in plan.keep if Path(path).is_dir()]
    namespaces.mount("tmpfs", Path("/run"), "tmpfs", data="mode=755")
    upper, work = Path("/run/.var/upper"), Path("/run/.var/work")
    upper.mkdir(parents=True)
    work.mkdir()
    namespaces.mount("overlay", Path("/var"), "overlay", data=f"lowerdir=/var,upperdir={upper},workdir={work}")
    for path, descriptor in kept:
        if path.is_relative_to("/run") or path.is_relative_to("/var"):
            path.mkdir(parents=True, exist_ok=True)
            source = f"/proc/self/fd/{descriptor}"
            namespaces.mount(source, path, flags=namespaces.MS_BIND | namespaces.MS_REC)
        os.close(descriptor)
    kubelet = Path("/var/lib/kubelet")
    kubelet.mkdir(parents=True, exist_ok=True)
    namespaces.mount(str(state.kubelet), kubelet, flags=namespaces.MS_BIND)
    for name, value in plan.host_sysctls.items():
        if not (Path("/proc/sys") / name).exists():
            continue
        shown = Path("/run/.sysctl") / name.replace("/", ".")
        shown.parent.mkdir(exist_ok=True)
        shown.write_text(f"{value}\n")
        namespaces.mount(str(shown), Path("/proc/sys") / name, flags=namespaces.MS_BIND)
    namespaces.mount("none", Path("/"), flags=namespaces.MS_REC | namespaces.MS_SHARED)  # volumes must reach containers


def prepare_network(plan: Plan) -> None:
    for command in plan.commands:
        subprocess.run(command, check=True)
    for name, value in plan.network_sysctls.items():
        (Path("/proc/sys") / name).write_text(value)


class Supervisor:
    """Starts, reaps and restarts. Single-threaded; one loop woken by SIGCHLD or by the next thing due."""

    def __init__(self, plan: Plan, state: State) -> None:
        self._state = state
        self._env = os.environ | plan.env
        self._children = [_Running(component) for component in plan.components]
        self._api_ready = False

    def run(self) -> None:
        """Returns on SIGTERM; PID 1 returning is the end of everything in its namespaces."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAKE_UP)
        while True:
            self._start_what_is_due()
            received = signal.sigtimedwait(_WAKE_UP, self._patience())
            if received and received.si_signo == signal.SIGTERM:
                return
            self._reap()
            if not self._api_ready:
                self._api_ready = api_is_ready(self._state)

    def _patience(self) -> float:
        if not self._api_ready:
            return 0.1
        due = [child.start_at for child in self._children if child.pid is None]
        return max(0.05, min(due) - time.monotonic()) if due else 3600

    def _start_what_is_due(self) -> None:
        started = False
        for child in self._children:
            waits = child.component.needs_api and not self._api_ready
            if child.pid is None and not waits and time.monotonic() >= child.start_at:
                child.pid = self._spawn(child.component)
                child.starts += 1
                started = True
        if started:
            self._publish()

    def _spawn(self, component: Component) -> int:
        log = str(self._state.logs / f"{component.name}.log")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.posix_spawnp(
            component.argv[0],
            component.argv,
            self._env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsigmask=[],
        )

    def _reap(self) -> None:
        """Collects every dead child, orphans of the containers' shims included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.pid == pid:
                    child.pid, child.exit_code = None, os.waitstatus_to_exitcode(status)
                    child.start_at = time.monotonic() + _RESTART_AFTER_S
                    self._publish()

    def _publish(self) -> None:
        shown = {
            child.component.name: {"pid": child.pid, "starts": child.starts, "exit_code": child.exit_code}
            for child in self._children
        }
        write_atomically(self._state.components, json.dumps(shown))


def api_is_ready(state: State) -> bool:
    """One short question to /readyz as the admin; False for any failure."""
    try:
        context = create_default_context(cafile=str(state.pki / "ca.crt"))
        context.load_cert_chain(state.pki / "admin.crt", state.pki / "admin.key")
        with urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        ).open(f"{API_SERVER}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def start(state: State) -> int:
    """Forks the supervisor into new namespaces, detached from the caller; returns its host PID."""
    reader, writer = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        os.close(reader)
        try:
            os.setsid()
            cgroups.join(cgroups.host_hierarchies(), state.cgroup, os.getpid())
            namespaces.unshare()
            pid = os.fork()
            if pid:
                os.write(writer, str(pid).encode())
                os._exit(0)
            os.close(writer)
            _become_init(state)
        except BaseException as error:
            (state.logs / "supervisor.log").write_text(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(launcher, 0)
    if not answer:
        raise OSError((state.logs / "supervisor.log").read_text().strip())
    return int(answer)


def _become_init(state: State) -> None:
    log = os.open(state.logs / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.closerange(3, 1024)
    os.chdir("/")
    plan = load_plan(state.plan)
    prepare_mounts(plan, state)
    prepare_network(plan)
    # Containers inherit it; a shell's usual 1024 is less than any node gives them.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Supervisor(plan, state).run()
