"""The commands of docs/quickstart.md for a cluster, as they stand, on a cluster of their own that they end again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from e2e.lib import pages
from localkube import paths

pytestmark = pytest.mark.node
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own_cluster() -> Iterator[dict[str, str]]:
    """Environment of another cluster than the session's; its folder is on the images' file system."""
    run = paths.cache_dir() / f"quickstart-{uuid4().hex[:8]}"
    own = {"SEMIPD_RUN": str(run)}
    yield own
    subprocess.run(["hack/cluster/cluster", "down"], cwd=ROOT, env=os.environ | own, check=False)
    shutil.rmtree(run, ignore_errors=True)


def test_a_cluster_answers(own_cluster: dict[str, str]) -> None:
    subprocess.run(["make", "model"], cwd=ROOT, check=True, capture_output=True)
    with pages.Shell(ROOT, own_cluster) as shell:
        for block in pages.blocks((ROOT / "docs" / "quickstart.md").read_text(), "On a cluster"):
            print(block.commands, shell.run(block, 300), sep="\n")
