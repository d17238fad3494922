#!/usr/bin/env python3
"""Decides which form the demo takes, before anything starts: prints `local`, `existing` or `embedded`.

`prerequisites.py CHOICE`; CHOICE is the value of CLUSTER: empty or `local` (fall back to the embedded form where the
local cluster cannot be had, in one line on stderr that says why), `existing`, `none`. Exit status 2: the choice cannot
be met and nothing else was asked for. Standard library only: it runs before the virtual environment exists, with
`hack/cluster` on the PYTHONPATH.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from localkube import debian, paths
from localkube.errors import ClusterError
from localkube.tools import Tools, module_version

FREE_BYTES = 20 * 10**9
"""Images, Kubernetes programs and the Go build cache while they are being made."""

Probe = Callable[[], str | None]
"""None: met. Else what is missing, as the end of a sentence."""


class Refused(Exception):
    """What was asked for cannot be had, and there is no other form to take."""


def decide(choice: str, local: Sequence[Probe], existing: Sequence[Probe]) -> tuple[str, str | None]:
    """(form, why not a cluster). The probes run in order until one fails; cheap ones come first."""
    if choice == "none":
        return "embedded", None
    if choice == "existing":
        if missing := first_missing(existing):
            raise Refused(f"CLUSTER=existing: {missing}")
        return "existing", None
    if choice not in ("", "local"):
        raise Refused(f"CLUSTER={choice}: choose local, existing or none")
    missing = first_missing(local)
    return ("embedded", missing) if missing else ("local", None)


def first_missing(probes: Sequence[Probe]) -> str | None:
    return next((missing for probe in probes if (missing := probe())), None)


def root() -> str | None:
    return None if os.geteuid() == 0 else "it needs root"


def namespaces() -> str | None:
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "true"]
    if shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0:
        return None
    return "this machine allows no new Linux namespaces"


def packages() -> str | None:
    missing = debian.missing_packages()
    if not missing or shutil.which("apt-get"):
        return None
    return f"not a Debian system, and these are missing: {' '.join(missing)}"


def disk() -> str | None:
    folder = paths.cache_dir()
    while not folder.exists():
        folder = folder.parent
    if paths.buildah_root().exists() or shutil.disk_usage(folder).free >= FREE_BYTES:
        return None
    return f"it needs {FREE_BYTES // 10**9} GB free under {folder}"


def programs() -> str | None:
    """Built already, or a Go toolchain and the modules to build them with."""
    tools = Tools()
    if not tools.missing():
        return None
    try:
        go = tools.go()
    except ClusterError as error:
        return f"no Go toolchain can be had ({error})"
    version = module_version(tools.go_mods["kubernetes"], "k8s.io/kubernetes")
    with tempfile.TemporaryDirectory() as empty:
        command = [str(go), "list", "-m", f"k8s.io/kubernetes@{version}"]
        env = os.environ | {"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOMODCACHE": empty, "GOPATH": empty}
        try:
            answer = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return "no Go module proxy answers (60 s)"
        finally:
            subprocess.run(["chmod", "-R", "u+w", empty], check=False)  # go writes its cache read-only
    return None if answer.returncode == 0 else "no Go module proxy answers"


def python_venv() -> str | None:
    """Installs Debian's python3-venv where it is missing: the Go toolchain of PyPI comes in a virtual environment."""
    has_venv = subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True).returncode == 0
    if has_venv or Tools().toolchain.go:
        return None
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "python3-venv"]):
        if subprocess.run(command, env=environment, capture_output=True).returncode != 0:
            return f"`{' '.join(command)}` failed"
    return None


def registry() -> str | None:
    return None if os.environ.get("REGISTRY") else "say REGISTRY=host/path, where `make images` has pushed the images"


def reachable() -> str | None:
    if not shutil.which("kubectl"):
        return "kubectl is not on the PATH"
    answer = subprocess.run(["kubectl", "version", "--request-timeout=10s"], capture_output=True, text=True)
    if answer.returncode == 0:
        return None
    return f"kubectl does not reach a cluster: {(answer.stderr.strip().splitlines() or ['no message'])[-1]}"


def helm() -> str | None:
    return None if shutil.which("helm") else "helm is not on the PATH"


LOCAL: tuple[Probe, ...] = (root, namespaces, packages, disk, python_venv, programs)
EXISTING: tuple[Probe, ...] = (registry, reachable, helm)


def main() -> int:
    try:
        form, missing = decide(sys.argv[1] if len(sys.argv) > 1 else "", LOCAL, EXISTING)
    except Refused as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    if missing:
        print(f"demo: no local cluster here: {missing}; running the form without Kubernetes", file=sys.stderr)
    print(form)
    return 0


if __name__ == "__main__":
    sys.exit(main())
