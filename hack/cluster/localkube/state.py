"""The one folder of a cluster: its layout, and whether its supervisor lives. Starts and stops nothing."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from localkube import paths
from localkube.errors import ClusterError


@dataclass(frozen=True)
class State:
    """Layout of `root`. `down` removes all of it but the logs, which stay for the post-mortem until the next `up`."""

    root: Path

    @classmethod
    def default(cls) -> "State":
        return cls(paths.cluster_dir())

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def tools(self) -> Path:
        """Link to the programs that the cluster was started with: clients match it whatever their PATH is."""
        return self.root / "bin"

    @property
    def kubelet(self) -> Path:
        """The kubelet's root (volumes), on disk; seen at /var/lib/kubelet inside."""
        return self.root / "kubelet"

    @property
    def containerd(self) -> Path:
        """containerd's store; on the file system of the image builder's store, so that layers can be hard links."""
        return self.root / "containerd"

    @property
    def kubeconfig(self) -> Path:
        return self.config / "admin.kubeconfig"

    @property
    def plan(self) -> Path:
        return self.config / "plan.json"

    @property
    def supervisor(self) -> Path:
        return self.root / "supervisor.json"

    @property
    def components(self) -> Path:
        return self.root / "components.json"

    @property
    def undo(self) -> Path:
        """What `down` must put back on the host."""
        return self.root / "undo.json"

    @property
    def cgroup(self) -> str:
        """Name of the cluster's cgroup; another root, another name."""
        return f"semipd-{sha256(str(self.root).encode()).hexdigest()[:6]}"

    def supervisor_pid(self) -> int | None:
        """Host PID of the live supervisor; None if there is none. A recycled PID does not pass for it."""
        try:
            record = json.loads(self.supervisor.read_text())
        except (FileNotFoundError, ValueError):
            return None
        pid = int(record["pid"])
        return pid if start_time(pid) == record["start_time"] else None

    def record_supervisor(self, pid: int) -> None:
        write_atomically(self.supervisor, json.dumps({"pid": pid, "start_time": start_time(pid)}))

    def require_supervisor(self) -> int:
        pid = self.supervisor_pid()
        if pid is None:
            raise ClusterError("no cluster is up", "run `hack/cluster/cluster up`")
        return pid

    def client_env(self, base: Mapping[str, str]) -> dict[str, str]:
        """Environment for clients: kubeconfig, tools first on the PATH, caches that vanish with the cluster."""
        no_proxy = ",".join(filter(None, [base.get("NO_PROXY", base.get("no_proxy", "")), _NO_PROXY]))
        return dict(base) | {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.root / "kube-cache"),
            "HELM_CACHE_HOME": str(self.root / "helm" / "cache"),
            "HELM_CONFIG_HOME": str(self.root / "helm" / "config"),
            "HELM_DATA_HOME": str(self.root / "helm" / "data"),
            "PATH": f"{self.tools}:{base.get('PATH', os.defpath)}",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }


_NO_PROXY = "localhost,127.0.0.1,10.96.0.0/16,10.200.0.0/16,10.244.0.0/16,10.200.0.1,10.96.0.1,.svc,.cluster.local"


def start_time(pid: int) -> str | None:
    """Boot id and start tick of a process; None if it is gone or a zombie. Equal only for the same process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old text or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.rename(path)
