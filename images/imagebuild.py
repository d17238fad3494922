"""Builds the project's images by buildah from the Containerfile in this folder, over a Debian base made here.

An image is tagged with a hash of all that it is built from: an unchanged tree finds it in the store and builds nothing.
The store lies in the cache, on the file system from which the local cluster links layers. Standard library only.
"""

import configparser
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localkube import debian, paths
from localkube.errors import ClusterError

PREFIX = "localhost/semipd"
CONTAINERFILE = "images/Containerfile"
TREE_INPUTS = (
    *("pyproject.toml", "hatch_build.py", "constraints.txt", "README.md", "LICENSE"),
    *("cli", "operator", "agent", "engine"),
    "images/requirements.py",
)
"""What the Containerfile copies."""
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")

_MANY_IMAGES = 150

BASE_SUITE = "bookworm"
BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
BASE_HEADERS = "libpython3-dev"
_BASE_OPTIONS = (
    "--variant=apt",
    f"--include={','.join(BASE_PACKAGES)}",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


@dataclass(frozen=True)
class Image:
    """One target of the Containerfile; `arguments` are the build arguments that it knows besides BASE_IMAGE."""

    name: str
    arguments: tuple[str, ...] = ()


IMAGES = (Image("operator"), Image("engine", ("TORCH_INDEX", "GPU_CARDS", "PYTHON_HEADERS")))


def with_headers(env: Mapping[str, str]) -> dict[str, str]:
    """For a build over our own base: the headers that compiling a GPU's kernels wants, where they are asked for or the
    image goes elsewhere. It takes minutes for each version; a local cluster without a GPU does not need them."""
    wanted = env.get("GPU_CARDS") or env.get("REGISTRY")
    return {"PYTHON_HEADERS": BASE_HEADERS, **env} if wanted else dict(env)


def tree_files(tree: Path, inputs: Iterable[str]) -> list[Path]:
    """The files below `inputs` that go into an image, sorted; nothing that Python or a compiler left there."""
    found: list[Path] = []
    for name in inputs:
        top = tree / name
        found += [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
    return sorted(path for path in found if "__pycache__" not in path.parts and path.suffix not in (".pyc", ".so"))


def content_key(tree: Path, files: Iterable[Path], settings: Mapping[str, str]) -> str:
    """12 hex digits over names, modes and bytes of `files` and over the settings."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for file in files:
        head = f"{file.relative_to(tree)} {file.stat().st_mode & 0o111:o} {file.stat().st_size}\n"
        digest.update(head.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def pip_configuration(files: Iterable[Path], env: Mapping[str, str]) -> str:
    """What pip must know inside a build, from this machine's pip.conf files and PIP_* variables; empty if nothing.

    Only settings about where packages come from: paths of this machine mean nothing in there.
    """
    wanted = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
    parser = configparser.RawConfigParser()
    parser.read(files)
    settings = dict(parser["global"]) if parser.has_section("global") else {}
    settings |= {key[4:].lower().replace("_", "-"): value for key, value in env.items() if key.startswith("PIP_")}
    kept = {key: settings[key] for key in wanted if settings.get(key)}
    if settings.get("cert"):
        kept["cert"] = str(_CA_BUNDLE)  # the machine's own bundle is mounted over the base's
    return "".join(["[global]\n", *(f"{key} = {value}\n" for key, value in kept.items())]) if kept else ""


class Builder:
    """buildah with a store, a policy and a configuration of its own, so that the machine's do not matter."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "images"
        self.store = paths.buildah_root()

    def prepare(self) -> None:
        debian.require_root()
        debian.require(debian.IMAGE_PROGRAMS)
        for folder in (self.store, self.folder / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        # The cluster links layers as they are: metacopy and friends would make some that only this store can read,
        # and a mount over the store would forbid links to it.
        (self.folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.store}"\nrunroot = "{self.folder}/run"\n'
            '[storage.options.overlay]\nmountopt = "nodev"\nskip_mount_home = "true"\n'
        )
        # The store keeps which of the machine's network programs it once saw, and fails when that one is gone.
        (self.store / "defaultNetworkBackend").unlink(missing_ok=True)

    def buildah(self, *arguments: str, check: bool = True, show: bool = False) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "TMPDIR": str(self.folder / "tmp"),
            "BUILDAH_ISOLATION": "chroot",
        }
        output = None if show else subprocess.PIPE
        # A mount namespace of its own: a build that is killed leaves no mounts, and `cluster load` meets none.
        command = ["unshare", "--mount", "--kill-child", "buildah", *arguments]
        answer = subprocess.run(command, env=env, stdout=output, stderr=output, text=True)
        if check and answer.returncode:
            if show:
                raise ClusterError(f"buildah {arguments[0]} failed", "see above")
            log = self.folder / "buildah.log"
            log.write_text(f"{answer.stdout}{answer.stderr}")
            last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
            raise ClusterError(f"buildah {arguments[0]} failed: {last}", f"see {log}")
        return answer

    def has(self, image: str) -> bool:
        return self.buildah("inspect", "--type=image", image, check=False).returncode == 0

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One build at a time: a second caller waits and then finds everything built."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def base(self) -> str:
        """A Debian root with Python, by mmdebstrap, once; returns its name."""
        key = hashlib.sha256(repr((BASE_SUITE, _BASE_OPTIONS)).encode()).hexdigest()[:12]
        name = f"{PREFIX}/base:{key}"
        if self.has(name):
            return name
        with _step(f"Debian {BASE_SUITE} base"):
            context = self.folder / "base"
            shutil.rmtree(context, ignore_errors=True)
            context.mkdir()
            command = ["mmdebstrap", "--quiet", *_BASE_OPTIONS, BASE_SUITE, str(context / "root.tar")]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode:
                last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
                raise ClusterError(f"mmdebstrap failed: {last}", "set BASE_IMAGE to an image of a registry instead")
            (context / "Containerfile").write_text('FROM scratch\nADD root.tar /\nCMD ["python3"]\n')
            self.buildah("build", "--signature-policy", str(self.folder / "policy.json"), "--tag", name, str(context))
            shutil.rmtree(context)
        return name

    def build(self, image: Image, base: str, tree: Path, env: Mapping[str, str], *, verbose: bool = False) -> str:
        """Returns the image's name; its tag is the hash of what went into it. `:dev` is moved to it."""
        files = tree_files(tree, (*TREE_INPUTS, CONTAINERFILE))
        arguments = {"BASE_IMAGE": base} | {name: env[name] for name in image.arguments if env.get(name)}
        name = f"{PREFIX}/{image.name}:{content_key(tree, files, arguments)}"
        if not self.has(name):
            with _step(f"{image.name} image"):
                context = _stage(tree, files, self.folder / "context")
                options = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
                options += self._volumes(env)
                pull = "--pull-never" if base.startswith(PREFIX) else "--pull"
                policy = ("--signature-policy", str(self.folder / "policy.json"))
                target = ("--file", str(context / CONTAINERFILE), "--target", image.name)
                common = ("--layers", "--isolation=chroot", "--network=host", "--format=oci", pull, *policy, *options)
                self.buildah("build", *common, *target, "--tag", name, str(context), show=verbose)
                shutil.rmtree(context)
        self.buildah("tag", name, f"{PREFIX}/{image.name}:dev")
        return name

    def build_commit(self, commit: str, env: Mapping[str, str]) -> list[str]:
        """Images of an earlier commit of this repository, by that commit's own builder over the layers that are here.

        They are tagged `commit-…` and kept; `:dev` is whoever's built next. The source stays in the cache beside them.
        Not to be called under `lock`: that builder takes it, too.
        """
        short = commit[:12]
        names = [f"{PREFIX}/{image.name}:commit-{short}" for image in IMAGES]
        tree = self.folder.parent / "releases" / short
        if not (tree / ".complete").exists():
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir(parents=True)
            pack = subprocess.run(["git", "-C", str(paths.REPOSITORY), "archive", commit], capture_output=True)
            if pack.returncode:
                raise ClusterError(
                    f"git knows no commit {short} here", "fetch the whole history: git fetch --unshallow"
                )
            subprocess.run(["tar", "-x", "-C", str(tree)], input=pack.stdout, check=True)
            (tree / ".complete").touch()
        for image, name in zip(IMAGES, names, strict=True):
            if self.has(name):
                continue
            # One at a time: a builder that makes both drops what it did not make.
            command = [sys.executable, str(tree / "images" / "build"), image.name]
            own = {name: value for name, value in env.items() if name not in ("PYTHONPATH", "REGISTRY")}
            answer = subprocess.run(command, env=own, stdout=subprocess.PIPE, text=True)
            if answer.returncode:
                raise ClusterError(f"the {image.name} image of {short} cannot be built", "see above")
            self.buildah("tag", answer.stdout.split()[-1], name)
        return names

    def _volumes(self, env: Mapping[str, str]) -> list[str]:
        home = Path(env.get("HOME", "/root"))
        files = [
            Path("/etc/pip.conf"),
            home / ".config" / "pip" / "pip.conf",
            Path(env.get("PIP_CONFIG_FILE", os.devnull)),
        ]
        text = pip_configuration(files, env)
        if not text:
            return []
        file = self.folder / "pip.conf"
        file.write_text(text)
        volumes = [f"{file}:/etc/pip.conf:ro"]
        if f"cert = {_CA_BUNDLE}" in text:
            volumes.append(f"{_CA_BUNDLE}:{_CA_BUNDLE}:ro")
        return [word for volume in volumes for word in ("--volume", volume)]

    def drop_superseded(self, current: Iterable[str]) -> None:
        """Untags our images of earlier trees; now and then drops the cached layers that no tagged image is made of.

        Those are only the build stages' (seconds to make again), so the cache of the layers that matter stays.
        """
        keep = set(current)
        listing = self.buildah("images", "--format", "{{.Name}}:{{.Tag}}", check=False).stdout
        for name in listing.split():
            ours = any(name.startswith(f"{PREFIX}/{image.name}:") for image in IMAGES)
            if ours and name not in keep and not name.endswith(":dev") and ":commit-" not in name:
                self.buildah("rmi", name, check=False)
        if len(self.buildah("images", "--all", "--quiet", check=False).stdout.split()) > _MANY_IMAGES:
            self.buildah("rmi", "--prune", check=False)

    def push(self, name: str, registry: str) -> list[str]:
        """Pushes as REGISTRY/NAME with the content tag and `dev`, with the machine's registry credentials."""
        short = name.removeprefix(f"{PREFIX}/")
        targets = [f"{registry.rstrip('/')}/{short}", f"{registry.rstrip('/')}/{short.split(':')[0]}:dev"]
        for target in targets:
            with _step(f"pushing {target}"):
                self.buildah("push", "--signature-policy", str(self.folder / "policy.json"), name, f"docker://{target}")
        return targets

    def clean(self) -> None:
        """Removes every image, layer and cache of ours."""
        if not self.folder.exists():
            return
        debian.require_root()
        shutil.rmtree(self.folder)


def _stage(tree: Path, files: Iterable[Path], context: Path) -> Path:
    """A copy of the inputs with fixed times: COPY then finds its cached layer again in a fresh clone too."""
    shutil.rmtree(context, ignore_errors=True)
    for file in files:
        target = context / file.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        target.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
        os.utime(target, (0, 0))
    for folder in (path for path in context.rglob("*") if path.is_dir()):
        os.utime(folder, (0, 0))
    return context


@contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"images: {what} …", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    print(f"images: {what}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
