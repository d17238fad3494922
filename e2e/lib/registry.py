"""An OCI registry on this machine, for tests: the distribution project's, from Debian's package `docker-registry`.

The package is unpacked into the cache and not installed, so no service is started or left behind. What was pushed stays
in the cache, too: a layer of gigabytes is compressed once, not with every run.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from localkube import paths
from localkube.pki import Certificate, issue

HOST = "localhost:5999"
"""Fixed: buildah remembers by the registry's name which layers it has there."""
_MOST_BYTES = 12 << 30
_DEBIAN_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class RegistryError(Exception):
    """The package cannot be had, or the registry does not answer."""


def program() -> Path:
    """Unpacked on first use, which takes a Debian mirror (5 MB)."""
    folder = paths.cache_dir() / "docker-registry"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            if said := _apt(fresh, "download", "docker-registry"):
                said = _apt(fresh, "update") or _apt(fresh, "download", "docker-registry")
            if said:
                raise RegistryError(f"apt-get cannot get docker-registry: {said}")
            [package] = Path(fresh).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", package, Path(fresh) / "files"], check=True)
            (Path(fresh) / "files").rename(folder)
    return folder / "usr" / "bin" / "docker-registry"


def _apt(folder: str, *words: str) -> str:
    """What it complains of; empty when it is content."""
    done = subprocess.run(["apt-get", "-qq", *words], cwd=folder, capture_output=True, text=True)
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""


class Registry:
    """The store in the cache, behind `HOST` of every network in which it is `served`."""

    def __init__(self, folder: Path) -> None:
        """`folder` for certificates, configuration and log."""
        self._folder, self._program = folder, program()
        self._store = paths.cache_dir() / "registry"
        files = (file for file in self._store.rglob("*") if file.is_file())
        if sum(file.stat().st_size for file in files) > _MOST_BYTES:
            shutil.rmtree(self._store)  # layers of images of long ago
        issue(folder / "pki", (Certificate("registry", "/CN=registry", ("DNS:localhost", "IP:127.0.0.1")),))

    def client_env(self) -> dict[str, str]:
        """For programs in Go: its authority beside those of the machine."""
        bundle = self._folder / "authorities.pem"
        known = Path(ssl.get_default_verify_paths().cafile or _DEBIAN_BUNDLE)
        bundle.write_text((known.read_text() if known.exists() else "") + (self._folder / "pki" / "ca.crt").read_text())
        return {"SSL_CERT_FILE": str(bundle)}

    @contextmanager
    def served(self, prefix: Sequence[str] = (), *, tls: bool) -> Iterator[None]:
        """`prefix`: of a command that is to run in another network. `tls`: helm pushes by TLS only; containerd asks a
        registry at localhost without it."""
        configuration = self._folder / f"registry-{tls}.json"
        http: dict[str, object] = {"addr": HOST.replace("localhost", "127.0.0.1"), "secret": "of-a-test"}
        if tls:
            pki = self._folder / "pki"
            http["tls"] = {"certificate": str(pki / "registry.crt"), "key": str(pki / "registry.key")}
        storage = {"filesystem": {"rootdirectory": str(self._store)}}
        configuration.write_text(
            json.dumps({"version": "0.1", "log": {"level": "warn"}, "storage": storage, "http": http})
        )
        log = self._folder / "registry.log"
        with log.open("a") as output:
            command = [*prefix, str(self._program), "serve", str(configuration)]
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            port = int(HOST.rpartition(":")[2])
            asks = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
            deadline = time.monotonic() + 60
            while subprocess.run([*prefix, sys.executable, "-c", asks], capture_output=True).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RegistryError(f"the registry at {HOST} does not answer: {log.read_text()[-500:]}")
                time.sleep(0.2)
            if process.poll() is not None:
                raise RegistryError(f"{HOST} is taken: {log.read_text()[-500:]}")
            yield
        finally:
            process.terminate()
            process.wait(20)
