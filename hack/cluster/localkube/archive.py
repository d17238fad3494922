"""Small OCI archives made by hand: an image of a few files, or of a manifest alone. Pure; all in memory."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def image_archive(name: str, files: Mapping[str, bytes], entrypoint: list[str]) -> bytes:
    """An image of one layer with the given executables at its root, for this machine's architecture."""
    layer = _tar({path: (data, 0o755) for path, data in files.items()})
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": entrypoint},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
    ).encode()
    return oci_archive(name, config, [descriptor(LAYER, layer)], {digest(layer): layer})


def oci_archive(name: str, config: bytes, layers: list[dict[str, object]], blobs: Mapping[str, bytes]) -> bytes:
    """An OCI archive that names one image. Blobs of `layers` may be left out if the importer does not unpack."""
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config), "layers": layers}
    ).encode()
    entry = descriptor(MANIFEST, manifest) | {
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    }
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    for key, blob in {digest(config): config, digest(manifest): manifest, **blobs}.items():
        files[f"blobs/{key.replace(':', '/')}"] = blob
    return _tar({path: (data, 0o644) for path, data in files.items()})


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (data, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
