"""A cgroup of our own in every hierarchy of the host, version 1 or 2, and its removal. Knows no Kubernetes."""

import errno
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from localkube.errors import ClusterError

_WANTED = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")


@dataclass(frozen=True)
class Hierarchies:
    """Mount points of the cgroup file systems that hold controllers.

    `bare` is a hybrid host's version 2 one, which holds none: we put nothing there, but runc does.
    """

    version: int
    mounts: tuple[Path, ...]
    bare: tuple[Path, ...] = ()


def parse_mounts(mounts: str) -> Hierarchies:
    """From the text of /proc/mounts."""
    found: dict[str, list[Path]] = {"cgroup": [], "cgroup2": []}
    for line in mounts.splitlines():
        _, target, fstype, *_ = line.split()
        if fstype in found and Path(target) not in found[fstype]:
            found[fstype].append(Path(target))
    if found["cgroup"]:
        return Hierarchies(1, tuple(found["cgroup"]), tuple(found["cgroup2"]))
    if found["cgroup2"]:
        return Hierarchies(2, (found["cgroup2"][0],))
    raise ClusterError("no cgroup file system is mounted", "mount one on /sys/fs/cgroup")


def host_hierarchies() -> Hierarchies:
    return parse_mounts(Path("/proc/mounts").read_text())


def create(hierarchies: Hierarchies, name: str) -> list[str]:
    """Makes NAME (for the kubelet's pods) and NAME/system (for our processes) in every hierarchy.

    Returns the controllers that were on at a version 2 root before; `destroy` takes the others back.
    """
    before: list[str] = []
    for mount in hierarchies.mounts:
        top = mount / name
        try:
            if hierarchies.version == 2:
                before = _switched_on(mount)
                _delegate(mount)
            top.mkdir(exist_ok=True)
            if hierarchies.version == 2:
                _delegate(top)
            (top / "system").mkdir(exist_ok=True)
        except OSError as error:
            raise ClusterError(
                f"cannot make a cgroup under {mount}: {error.strerror}", "run on a VM or a host"
            ) from None
        if hierarchies.version == 1:
            _fill_cpuset(top)
            _fill_cpuset(top / "system")
    return before


def join(hierarchies: Hierarchies, name: str, pid: int) -> None:
    """Puts a process, and thus what it starts from now on, in NAME/system."""
    for mount in hierarchies.mounts:
        (mount / name / "system" / "cgroup.procs").write_text(str(pid))


def destroy(
    hierarchies: Hierarchies, name: str, before: Collection[str] | None = None, patience_s: float = 10.0
) -> list[Path]:
    """Removes NAME and all below it once its processes are gone; returns what would not go within `patience_s`.

    Then switches off at a version 2 root what was not on `before` (None: unknown): our own controllers, and those that
    runc switches on, which takes all there are.
    """
    deadline = time.monotonic() + patience_s
    mounts = (*hierarchies.mounts, *hierarchies.bare)
    while left := [path for mount in mounts for path in _remove_tree(mount / name)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    if hierarchies.version == 2 and before is not None:
        root = hierarchies.mounts[0]
        for controller in _switched_on(root):
            if controller not in before:
                _switch_off(root, controller)
    return []


def _switched_on(group: Path) -> list[str]:
    """Controllers that the children of a version 2 group have."""
    return (group / "cgroup.subtree_control").read_text().split()


def _switch_off(group: Path, controller: str) -> None:
    """Unless a child of the group has come to use it."""
    try:
        (group / "cgroup.subtree_control").write_text(f"-{controller}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise


def _delegate(group: Path) -> None:
    """Switches on for the children of a version 2 group what the kubelet needs."""
    available = (group / "cgroup.controllers").read_text().split()
    enabled = _switched_on(group)
    if missing := [name for name in _WANTED if name in available and name not in enabled]:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in missing))


def _fill_cpuset(group: Path) -> None:
    """A new version 1 cpuset is empty, and no process may join an empty one."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = group / name
        if file.exists() and not file.read_text().strip():
            file.write_text((group.parent / name).read_text())


def _remove_tree(top: Path) -> list[Path]:
    if not top.exists():
        return []
    groups = sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
    for group in (*groups, top):
        try:
            group.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # a process or a child is still in it
            return [group]
    return []
