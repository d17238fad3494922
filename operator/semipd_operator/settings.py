"""What the operator is told at start: images, the key, namespaces, ports, periods. It knows no service."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from semipd_agent.contract import AGENT_PORT, service_token

MANAGER = "semipd-operator"
"""Field manager of server-side apply, and the value of app.kubernetes.io/managed-by."""


ENGINE_USER = 10001
"""Of the engine's image."""
CLAIM_ANNOTATION = "semipd.io/operator"
"""On a service's ConfigMap: which operator looks after it."""
LEASE_API = "coordination.k8s.io/v1"


@dataclass(frozen=True)
class LeaseName:
    """The Lease that decides which replica leads."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def package_version() -> str:
    try:
        return version("semipd")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0"


class SettingsError(ValueError):
    """A flag or environment variable is wrong; the message names it and the remedy."""


@dataclass(frozen=True)
class MetricsAPISettings:
    """Where the operator serves external.metrics.k8s.io, and by which certificate."""

    namespace: str
    service: str
    """Name of the Service that the APIService names; it is in the certificate. The ClusterRole of that name owns the
    registration."""
    service_port: int = 443
    secret: str = ""
    """Keeps a certificate of our own."""
    tls_dir: Path | None = None
    """Holds tls.crt and tls.key of someone else; instead of `secret`."""
    port: int = 8443


@dataclass(frozen=True)
class Settings:
    engine_image: str
    """Image of agent and engine for services that name none."""
    key: bytes = field(repr=False)
    """Secret from which the token of each service is made; empty: the agents obey nobody."""
    earlier_keys: tuple[bytes, ...] = field(default=(), repr=False)
    """Those that pods may still go by; newest first."""
    key_files: tuple[Path, ...] = ()
    """Where they come from, in that order: read again and again."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; empty: all."""
    version: str = field(default_factory=package_version)
    image_pull_policy: str = ""
    """Of the engine pods; empty: Kubernetes' default."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets for the engine image, in each service's namespace."""
    engine_user: int | None = ENGINE_USER
    """User and group of the engine pods; None: the cluster gives them one (OpenShift)."""
    pod_monitor_labels: tuple[tuple[str, str], ...] = ()
    """Labels of PodMonitors: what Prometheus selects them by."""
    agent_port: int = AGENT_PORT
    poll_seconds: float = 2.0
    poll_timeout_seconds: float = 1.5
    resync_seconds: float = 60.0
    workers: int = 16
    slo_write_seconds: float = 15.0
    health_port: int = 8080
    metrics_port: int = 9090
    name: str = ""
    """By which operators know each other's services (`semipd_operator.claims`)."""
    lease: LeaseName | None = None
    """None: there is one replica only."""
    metrics_api: MetricsAPISettings | None = None
    """None: it is not served."""
    deaf_after_seconds: float = 180.0
    """Without the end of a reconcile, or a round of the resync, for this long the operator counts as dead."""

    def tokens(self, namespace: str, name: str, uid: str) -> tuple[str, ...]:
        """Of one service, of the current key first; none without a key."""
        keys = (self.key, *self.earlier_keys) if self.key else ()
        return tuple(service_token(key, namespace, name, uid) for key in keys)


MIN_KEY_BYTES = 16


def read_key(path: Path) -> bytes:
    """The key's bytes, white space at the ends removed. Raises `SettingsError`."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"--key-file {path}: {error.strerror}: mount the chart's Secret there") from error
    if len(key) < MIN_KEY_BYTES:
        raise SettingsError(f"--key-file {path} holds {len(key)} bytes: write at least {MIN_KEY_BYTES} random ones")
    return key
