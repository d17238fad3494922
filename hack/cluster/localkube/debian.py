"""What the cluster and the image builds need of the machine: root, and Debian packages that it can install."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from localkube.errors import ClusterError

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "mount": "mount",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}
"""Program (found on the PATH, or at its absolute path) and the package that brings it."""

IMAGE_PROGRAMS = ("buildah", "mmdebstrap")
CLUSTER_PROGRAMS = tuple(name for name in PACKAGES if name not in IMAGE_PROGRAMS)


def missing_packages(programs: tuple[str, ...] = CLUSTER_PROGRAMS + IMAGE_PROGRAMS) -> list[str]:
    """Packages to install so that all of `programs` are there; sorted, each once."""
    return sorted({PACKAGES[name] for name in programs if shutil.which(name, path=_search_path()) is None})


def _search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


def require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError(
            "the cluster needs root", "run it with sudo, or use the form without a cluster (CLUSTER=none)"
        )


def require(programs: tuple[str, ...]) -> None:
    """Raises with the one command that mends it."""
    if absent := missing_packages(programs):
        raise ClusterError(f"missing Debian packages: {' '.join(absent)}", "run `hack/cluster/cluster deps` as root")


def install() -> None:
    """apt-get installs what is missing; the services that packages bring are not started."""
    absent = missing_packages()
    if not absent:
        return
    require_root()
    if shutil.which("apt-get") is None:
        raise ClusterError(f"not a Debian system; missing: {' '.join(absent)}", "install them by hand")
    print(f"deps: installing {' '.join(absent)}", file=sys.stderr, flush=True)
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent]
    if _apt(command).returncode == 0:
        return
    _apt(["apt-get", "update", "-qq"])
    answer = _apt(command)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(f"apt-get failed: {last}", "look at /etc/apt/sources.list and the network")


def _apt(command: list[str]) -> subprocess.CompletedProcess[str]:
    # containerd's package would start a daemon that nobody asked for.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        return subprocess.run(
            command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
        )
    finally:
        if ours:
            policy.unlink()
