"""What a user sees in `kubectl get spd` when it cannot work: the cause, by name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from e2e.lib.fixtures import Serve
from e2e.lib.process import wait_until
from e2e.lib.service import spec

pytestmark = pytest.mark.node

GPU_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpu.yaml"


def test_no_gpu(serve: Serve) -> None:
    manifest = yaml.safe_load(GPU_EXAMPLE.read_text())
    manifest["spec"]["model"]["uri"] = "pvc://models/qwen3-8b"
    service = serve(manifest["metadata"]["name"], manifest["spec"])
    found = service.wait_condition("Available", "False", "Unschedulable", 60)
    assert "nvidia.com/gpu" in found["message"]
    row = service.row()
    assert (row["READY"], row["REASON"]) == ("False", "Unschedulable(nvidia.com/gpu)")


def test_no_such_image(serve: Serve, model_paths: dict[str, Path]) -> None:
    model = model_paths["tiny-llama"].name
    service = serve("tiny", spec(model, engine={"image": "registry.invalid/engine:none"}))
    service.wait_condition("Available", "False", "ImagePullFailed", 60)
    assert service.row()["REASON"].startswith("ImagePullFailed")
    # Put right, it serves.
    service.patch({"engine": {"image": None}})
    service.wait_ready()


def test_no_such_folder(serve: Serve, model_paths: dict[str, Path]) -> None:
    """The pod stays: the agent says why and tries again in growing pauses."""
    service = serve("tiny", spec("no-such-folder"))
    found = service.wait_condition("ModelReady", "False", "NotFound", 90)
    assert "no-such-folder" in found["message"]
    assert service.row()["REASON"].startswith("NotFound")
    time.sleep(15)
    assert list(service.lives().values()) == [0]
    assert service.status()["model"]["state"] == "Failed"
    service.patch({"model": {"uri": f"pvc://models/{model_paths['tiny-llama'].name}"}})
    wait_until(lambda: service.condition("ModelReady").get("status") == "True", 120, service.status)
    service.wait_ready()
