"""Pure: the configuration files and command lines of every component, from a few addresses and folders.

Values were chosen for one small machine and short tests; the reasons for the unusual ones stand beside them.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from localkube.state import State

NODE = "semipd-node"
BRIDGE = "semipd0"
NODE_IP = "10.200.0.1"
NODE_CIDR = f"{NODE_IP}/24"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/24"
SERVICE_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"
API_SERVER = f"https://{NODE_IP}:6443"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CNI_PLUGINS = "/usr/lib/cni"
AUDIT_LOG = "audit.jsonl"
PAUSE_IMAGE = "localhost/semipd/pause:1.0"

HOST_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet insists on. None is namespaced, so it is shown files with these values instead of the host's."""

NETWORK_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}


@dataclass(frozen=True)
class Component:
    """A process that the supervisor keeps running. `needs_api` ones are started once the API server is ready."""

    name: str
    argv: list[str]
    needs_api: bool = True


@dataclass(frozen=True)
class Plan:
    """All that the supervisor is told, as JSON: it computes nothing itself."""

    root: str
    cgroup: str
    keep: list[str]
    host_sysctls: dict[str, str]
    network_sysctls: dict[str, str]
    commands: list[list[str]]
    components: list[Component]
    env: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def network_commands() -> list[list[str]]:
    """An address that the API server may advertise (it refuses loopback), and the node's own route to Services."""
    ip = ["ip"]
    return [
        [*ip, "link", "set", "lo", "up"],
        [*ip, "link", "add", BRIDGE, "type", "bridge"],
        [*ip, "address", "add", NODE_CIDR, "dev", BRIDGE],
        [*ip, "link", "set", BRIDGE, "up"],
        [*ip, "route", "add", SERVICE_CIDR, "dev", BRIDGE],
    ]


def components(state: State, tools: Path) -> list[Component]:
    """Command lines, in the order in which they are started."""
    pki, config = state.pki, state.config
    return [
        Component("etcd", [str(tools / "etcd"), *_etcd_flags()], needs_api=False),
        Component("containerd", ["containerd", "--config", str(config / "containerd.toml")], needs_api=False),
        Component(
            "kube-apiserver",
            [str(tools / "kube-apiserver"), *_apiserver_flags(pki, config, state.logs)],
            needs_api=False,
        ),
        Component(
            "kube-controller-manager",
            [str(tools / "kube-controller-manager"), *_controller_manager_flags(pki, config)],
        ),
        Component(
            "kube-scheduler",
            [
                str(tools / "kube-scheduler"),
                f"--kubeconfig={config}/scheduler.kubeconfig",
                "--leader-elect=false",
                f"--cert-dir={state.root}/scheduler-certs",
            ],
        ),
        Component(
            "kubelet",
            [
                str(tools / "kubelet"),
                f"--config={config}/kubelet.json",
                f"--kubeconfig={config}/kubelet.kubeconfig",
                f"--hostname-override={NODE}",
                f"--node-ip={NODE_IP}",
                f"--cert-dir={state.root}/kubelet-certs",
            ],
        ),
        Component("kube-proxy", [str(tools / "kube-proxy"), f"--config={config}/kube-proxy.json"]),
        Component("coredns", [str(tools / "coredns"), "-conf", str(config / "Corefile")]),
    ]


def _etcd_flags() -> list[str]:
    # In memory and without fsync: the data is thrown away with the cluster.
    return [
        "--data-dir=/run/etcd",
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--logger=zap",
        "--log-level=warn",
    ]


def audit_policy() -> dict[str, object]:
    """Every write of a Deployment, with what came of it: tests prove by it that nothing was rolled in between."""
    deployments = [{"group": "apps", "resources": ["deployments"]}]
    verbs = ["create", "update", "patch", "delete"]
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "RequestResponse", "verbs": verbs, "resources": deployments}, {"level": "None"}],
    }


def _apiserver_flags(pki: Path, config: Path, logs: Path) -> list[str]:
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--bind-address={NODE_IP}",
        f"--advertise-address={NODE_IP}",
        "--secure-port=6443",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/service-account.pub",
        f"--service-account-signing-key-file={pki}/service-account.key",
        # Aggregated APIs (external metrics) and webhooks: who calls them, and straight to their endpoints.
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/front-proxy.crt",
        f"--proxy-client-key-file={pki}/front-proxy.key",
        "--enable-aggregator-routing=true",
        f"--audit-policy-file={config}/audit-policy.json",
        f"--audit-log-path={logs}/{AUDIT_LOG}",
    ]


def _controller_manager_flags(pki: Path, config: Path) -> list[str]:
    return [
        f"--kubeconfig={config}/controller-manager.kubeconfig",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki}/service-account.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--cert-dir={config.parent}/controller-manager-certs",
        "--leader-elect=false",
        # Without these the first ServiceAccounts wait some ten seconds behind the client's own rate limit.
        "--kube-api-qps=300",
        "--kube-api-burst=600",
        # Tests wait for these loops.
        "--horizontal-pod-autoscaler-sync-period=2s",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=16s",
    ]


def kubelet(state: State, cgroup: str) -> dict[str, object]:
    """KubeletConfiguration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "authentication": {"x509": {"clientCAFile": f"{state.pki}/ca.crt"}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{state.pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{state.pki}/kubelet-server.key",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,  # refused by default since 1.35
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{state.config}/resolv.conf",
        "podLogsDir": f"{state.root}/pod-logs",
        # A nearly full disk of the host is no reason to evict, nor to delete images that cannot be pulled again.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",  # how soon a changed ConfigMap is in the pods; a minute by default
        "shutdownGracePeriod": "0s",
    }


def kube_proxy(state: State) -> dict[str, object]:
    """KubeProxyConfiguration. conntrack's limits belong to the host: zero leaves them alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{state.config}/proxy.kubeconfig"},
        "hostnameOverride": NODE,
        "bindAddress": NODE_IP,
        "mode": "iptables",
        "clusterCIDR": "10.244.0.0/16",
        "detectLocalMode": "ClusterCIDR",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def cni_network() -> dict[str, object]:
    """One bridge for all pods. Hairpin: a pod reaches itself by its Service. No masquerade: there is no outside."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_CIDR}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "semipd", "plugins": [bridge, portmap]}


def containerd(state: State) -> str:
    """containerd's configuration, format 2 (containerd 1.6 to 2.x)."""
    return f"""\
version = 2
root = "{state.containerd}"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
disable_apparmor = true
# Root in a VM's sandbox may lack CAP_SYS_RESOURCE; without this its pods fail with "can't get final child's PID".
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{state.config}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def corefile(state: State) -> str:
    """CoreDNS's configuration: the cluster's names. Any other is refused at once, since there is no outside."""
    return f"""\
. {{
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {state.config}/dns.kubeconfig
        ttl 1
    }}
}}
"""


def bootstrap_objects() -> dict[str, object]:
    """Applied once the API answers: the Service of the cluster's DNS, which runs on the node, and what it may read."""
    meta = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"clusterIP": DNS_IP, "ports": ports}}
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**meta, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [NODE_IP], "conditions": {"ready": True}}],
        "ports": ports,
    }
    rbac = "rbac.authorization.k8s.io"
    read = {"verbs": ["list", "watch"]}
    role = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "namespaces", "pods"], **read},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], **read},
        ],
    }
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": "system:coredns"}],
    }
    return {"apiVersion": "v1", "kind": "List", "items": [service, endpoints, role, binding]}
