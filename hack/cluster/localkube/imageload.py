"""From the image builder's store into containerd without copying: each layer's files become hard links in a snapshot.

containerd then needs only the image's config and a manifest, so even a layer of gigabytes costs well under a second.
Whiteouts and opaque markers are the overlay file system's own in both stores, hence nothing has to be translated.
"""

import hashlib
import json
import subprocess
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from localkube import archive, lifecycle, paths
from localkube.errors import ClusterError
from localkube.state import State

_CTR = ["ctr", "--namespace", "k8s.io"]


@dataclass(frozen=True)
class Layer:
    """One layer of the builder's store: its files, and the digest and size of its uncompressed tar."""

    files: Path
    diff_id: str
    size: int


@dataclass(frozen=True)
class StoredImage:
    config: bytes
    layers: tuple[Layer, ...]
    """Base first."""


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Names of the snapshots after each layer, by the OCI image specification's ChainID."""
    chains: list[str] = []
    for diff_id in diff_ids:
        both = f"{chains[-1]} {diff_id}" if chains else None
        chains.append(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}" if both else diff_id)
    return chains


def find(store: Path, name: str) -> StoredImage:
    """Reads an image of the containers/storage overlay store at `store`."""
    try:
        images = json.loads((store / "overlay-images" / "images.json").read_text())
        records = {layer["id"]: layer for layer in json.loads((store / "overlay-layers" / "layers.json").read_text())}
    except FileNotFoundError:
        raise ClusterError(f"no images in {store}", "run `images/build`") from None
    image = next((one for one in images if name in (one.get("names") or ())), None)
    if image is None:
        known = sorted(known for one in images for known in one.get("names") or ())
        raise ClusterError(
            f"no image {name} in {store}", f"run `images/build`; there are: {', '.join(known) or 'none'}"
        )
    big_data = store / "overlay-images" / image["id"]
    config = (big_data / _big_data_file(f"sha256:{image['id']}")).read_bytes()
    layers: list[Layer] = []
    identity = image["layer"]
    while identity:
        record = records[identity]
        files = store / "overlay" / identity / "diff"
        layers.append(Layer(files, record["diff-digest"], record.get("diff-size", 0)))
        identity = record.get("parent")
    layers.reverse()
    expected = json.loads(config)["rootfs"]["diff_ids"]
    if [layer.diff_id for layer in layers] != expected:
        raise ClusterError(
            f"layers of {name} in {store} do not match its config", "run `images/build clean`, then `images/build`"
        )
    return StoredImage(config, tuple(layers))


def _big_data_file(key: str) -> str:
    """containers/storage keeps an item under its name, or under `=` and its base64 where that is no plain file name."""
    return "=" + b64encode(key.encode()).decode()


def load(state: State, name: str) -> int:
    """Makes `name` runnable on the node; returns how many layers were new to it."""
    state.require_supervisor()
    with lifecycle.exclusively(state):
        return _load(state, name)


def _load(state: State, name: str) -> int:
    store = paths.buildah_root()
    image = find(store, name)
    _require_one_file_system(store, state.containerd)
    known = _known_snapshots(state)
    added = 0
    parent = ""
    for layer, chain in zip(image.layers, chain_ids([layer.diff_id for layer in image.layers]), strict=True):
        if chain not in known:
            _add_snapshot(state, layer, chain, parent)
            added += 1
        parent = chain
    descriptors = [{"mediaType": archive.LAYER, "digest": one.diff_id, "size": one.size} for one in image.layers]
    tar = state.root / f"load-{uuid4().hex}.tar"
    tar.write_bytes(archive.oci_archive(name, image.config, descriptors, {}))
    try:
        lifecycle.run(state, [*_CTR, "images", "import", "--no-unpack", str(tar)])
    finally:
        tar.unlink()
    return added


def _known_snapshots(state: State) -> set[str]:
    listing = lifecycle.run(state, [*_CTR, "snapshots", "--snapshotter", "overlayfs", "list"]).stdout
    return {line.split()[0] for line in listing.splitlines()[1:] if line.strip()}


def _add_snapshot(state: State, layer: Layer, chain: str, parent: str) -> None:
    """prepare, link, commit. A crash in between leaves an active snapshot under a random key, which nobody uses."""
    key = f"load-{uuid4().hex}"
    snapshots = [*_CTR, "snapshots", "--snapshotter", "overlayfs"]
    lifecycle.run(state, [*snapshots, "prepare", key, *([parent] if parent else [])])
    target = _upper_directory(lifecycle.run(state, [*snapshots, "mounts", "/mnt", key]).stdout)
    copy = subprocess.run(["cp", "-al", f"{layer.files}/.", f"{target}/"], capture_output=True, text=True)
    if copy.returncode:
        lifecycle.run(state, [*snapshots, "remove", key], check=False)
        last = (copy.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(
            f"linking layer {layer.diff_id[:19]} failed: {last}", "run `images/build clean`, then `images/build`"
        )
    lifecycle.run(state, [*snapshots, "commit", chain, key])


def _upper_directory(mounts: str) -> Path:
    """Where an active snapshot's own files go: the overlay's upper directory, or the bind source of a first layer."""
    words = mounts.replace(",", " ").split()
    upper = next((word.removeprefix("upperdir=") for word in words if word.startswith("upperdir=")), None)
    folder = upper or next((word for word in words if word.endswith("/fs")), None)
    if folder is None:
        raise ClusterError(
            f"cannot read containerd's mounts: {mounts.strip()[:200]}", "containerd 1.6 to 2.x is supported"
        )
    return Path(folder)


def _require_one_file_system(store: Path, root: Path) -> None:
    if store.stat().st_dev != root.stat().st_dev:
        raise ClusterError(
            f"{store} and {root} are on different file systems, so layers cannot be linked",
            "let SEMIPD_CACHE and SEMIPD_RUN name folders on one file system",
        )
