"""Image building and loading: keys, layers, archives and requirement lists, without a builder or a cluster."""

import hashlib
import io
import json
import os
import tarfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

import imagebuild
import requirements
from localkube import archive, imageload
from localkube.errors import ClusterError

pytestmark = pytest.mark.unit

TREE = Path(__file__).parents[2]


def sha(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_chain_ids_follow_the_image_specification() -> None:
    a, b, c = sha("a"), sha("b"), sha("c")
    assert imageload.chain_ids([a, b, c]) == [a, sha(f"{a} {b}"), sha(f"{sha(f'{a} {b}')} {c}")]
    assert imageload.chain_ids([]) == []


def store_with(folder: Path, diff_ids: list[str]) -> Path:
    config = json.dumps({"rootfs": {"diff_ids": diff_ids}}).encode()
    identity = hashlib.sha256(config).hexdigest()
    layers: list[dict[str, Any]] = [
        {"id": "top", "parent": "bottom", "diff-digest": sha("top"), "diff-size": 7},
        {"id": "bottom", "diff-digest": sha("bottom"), "diff-size": 5},
    ]
    data = folder / "overlay-images" / identity
    data.mkdir(parents=True)
    (data / ("=" + b64encode(f"sha256:{identity}".encode()).decode())).write_bytes(config)
    (folder / "overlay-layers").mkdir()
    (folder / "overlay-layers" / "layers.json").write_text(json.dumps(layers))
    record = {"id": identity, "layer": "top", "names": ["localhost/semipd/x:dev"]}
    (folder / "overlay-images" / "images.json").write_text(json.dumps([record, {"id": "0", "names": None}]))
    return folder


def test_an_image_is_found_with_its_layers_base_first(tmp_path: Path) -> None:
    store = store_with(tmp_path, [sha("bottom"), sha("top")])
    image = imageload.find(store, "localhost/semipd/x:dev")
    assert [(layer.diff_id, layer.size) for layer in image.layers] == [(sha("bottom"), 5), (sha("top"), 7)]
    assert image.layers[1].files == tmp_path / "overlay" / "top" / "diff"
    with pytest.raises(ClusterError, match=r"no image y .*there are: localhost/semipd/x:dev"):
        imageload.find(store, "y")


def test_layers_that_are_not_the_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="do not match its config"):
        imageload.find(store_with(tmp_path, [sha("top"), sha("bottom")]), "localhost/semipd/x:dev")
    with pytest.raises(ClusterError, match="run `images/build`"):
        imageload.find(tmp_path / "none", "x")


def test_upper_directory_of_containerds_mounts() -> None:
    first = "mount -t bind /c/snapshots/1/fs /mnt -o rw,rbind"
    later = "mount -t overlay overlay /mnt -o index=off,workdir=/c/2/work,upperdir=/c/2/fs,lowerdir=/c/1/fs"
    assert imageload._upper_directory(first) == Path("/c/snapshots/1/fs")
    assert imageload._upper_directory(later) == Path("/c/2/fs")
    with pytest.raises(ClusterError, match="cannot read containerd's mounts"):
        imageload._upper_directory("gibberish")


def test_archive_is_consistent() -> None:
    data = archive.image_archive("localhost/x:1", {"pause": b"program"}, ["/pause"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    blobs = {f"sha256:{Path(name).name}": blob for name, blob in files.items() if name.startswith("blobs/")}
    assert all(archive.digest(blob) == key for key, blob in blobs.items())
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/x:1"
    manifest = json.loads(blobs[entry["digest"]])
    config = json.loads(blobs[manifest["config"]["digest"]])
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    with tarfile.open(fileobj=io.BytesIO(blobs[manifest["layers"][0]["digest"]])) as layer:
        assert layer.getmember("pause").mode == 0o755


def test_content_key_covers_names_bytes_modes_and_settings(tmp_path: Path) -> None:
    for name, text in (("a/x.py", "1"), ("a/__pycache__/x.pyc", "2"), ("b.toml", "3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    files = imagebuild.tree_files(tmp_path, ["a", "b.toml"])
    assert [str(file.relative_to(tmp_path)) for file in files] == ["a/x.py", "b.toml"]

    def key(**settings: str) -> str:
        return imagebuild.content_key(tmp_path, imagebuild.tree_files(tmp_path, ["a", "b.toml"]), settings)

    seen = [key(), key(TORCH_INDEX="u")]
    (tmp_path / "a/__pycache__/x.pyc").write_text("other")
    assert key() == seen[0]
    os.utime(tmp_path / "b.toml", (0, 0))
    assert key() == seen[0]
    (tmp_path / "a/x.py").chmod(0o755)
    seen.append(key())
    (tmp_path / "a/x.py").write_text("4")
    seen.append(key())
    assert len(set(seen)) == 4


def test_the_containerfile_copies_only_what_the_key_covers() -> None:
    text = (TREE / imagebuild.CONTAINERFILE).read_text()
    copied = {
        word
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    inputs = set(imagebuild.TREE_INPUTS)
    below = {name for name in copied if any(name.startswith(f"{top}/") for top in inputs)}
    assert copied - below == inputs
    for image in imagebuild.IMAGES:
        assert f" AS {image.name}\n" in text
        assert all(f"ARG {name}=" in text for name in ("BASE_IMAGE", *image.arguments))


def test_headers_come_with_the_kernels_that_want_them() -> None:
    """Only where somebody has a GPU for the image: a cluster on this machine has none."""
    assert "PYTHON_HEADERS" not in imagebuild.with_headers({"TORCH_INDEX": "x"})
    assert imagebuild.with_headers({"GPU_CARDS": "90"})["PYTHON_HEADERS"] == "libpython3-dev"
    assert imagebuild.with_headers({"REGISTRY": "r/p"})["PYTHON_HEADERS"] == "libpython3-dev"
    assert imagebuild.with_headers({"GPU_CARDS": "90", "PYTHON_HEADERS": "mine"})["PYTHON_HEADERS"] == "mine"


def test_pip_learns_of_indexes_but_not_of_this_machines_paths(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://a.example/simple\ncert = /x/ca.pem\nfind-links = /opt/wheels\n")
    text = imagebuild.pip_configuration([file, tmp_path / "absent"], {"PIP_INDEX_URL": "https://b.example/simple"})
    assert text.splitlines() == [
        "[global]",
        "index-url = https://b.example/simple",
        "cert = /etc/ssl/certs/ca-certificates.crt",
    ]
    assert imagebuild.pip_configuration([tmp_path / "absent"], {"PIP_FIND_LINKS": "/opt"}) == ""


def test_torch_is_pinned_and_alone_in_its_layer(tmp_path: Path) -> None:
    requirements.main(TREE / "pyproject.toml", TREE / "constraints.txt", tmp_path, ["agent", "engine"])
    torch = (tmp_path / "torch.txt").read_text().splitlines()
    assert [requirements.package_name(line) for line in torch] == ["torch"]
    rest = {requirements.package_name(line) for line in (tmp_path / "dependencies.txt").read_text().splitlines()}
    assert "torch" not in rest
    assert {"pydantic", "fastapi", "safetensors", "nvidia-ml-py"} <= rest
    assert "kopf" not in rest
    pinned = {requirements.package_name(line) for line in (tmp_path / "torch-constraints.txt").read_text().splitlines()}
    assert {"torch", "triton", "filelock"} <= pinned
    assert not pinned & {"kopf", "nvidia-ml-py", "torchvision", "pytest"}
    assert {(tmp_path / name).stat().st_mtime for name in ("torch.txt", "torch-constraints.txt")} == {0}


def test_package_names_are_normalised() -> None:
    assert requirements.package_name("Huggingface_Hub>=0.26,<2") == "huggingface-hub"
    with pytest.raises(ValueError, match="not a requirement"):
        requirements.package_name(">=1")
