"""The commands of docs/quickstart.md for a cluster, as they stand, on a cluster of their own that they end again.

The registry is on this machine, and in the cluster's network, under one name; it keeps what was pushed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from e2e.lib import pages
from e2e.lib.kube import CLUSTER, ROOT
from e2e.lib.registry import HOST, Registry
from localkube import paths

pytestmark = pytest.mark.node
SHOWN_ELSEWHERE = ("-S", "--fail-with-body", "--header")
"""Flags that a block which goes well can do without; tests/unit/test_pages.py shows what for."""
NOT_TRIED = {
    "make images": ("--destination",),  # `helm push` finds no file
    "helm install": ("--namespace", "--wait", "--set"),  # the pods are elsewhere, not yet there, or of no image
    "sed": ("--timeout",),  # of `kubectl wait`: the default is short for a slow machine
}
"""By the first words of a block: flags whose loss fails a later block. To leave them out would be in its way."""


@pytest.fixture
def own_cluster() -> Iterator[dict[str, str]]:
    """Environment of another cluster than the session's; its folder is on the images' file system."""
    run = paths.cache_dir() / f"quickstart-{uuid4().hex[:8]}"
    own = {"SEMIPD_RUN": str(run)}
    yield own
    subprocess.run(["hack/cluster/cluster", "down"], cwd=ROOT, env=os.environ | own, check=False)
    shutil.rmtree(run, ignore_errors=True)


def test_a_cluster_answers(own_cluster: dict[str, str], tmp_path: Path) -> None:
    subprocess.run(["make", "model"], cwd=ROOT, check=True, capture_output=True)
    registry = Registry(tmp_path)
    env = own_cluster | registry.client_env() | {"REGISTRY": f"{HOST}/semipd"}
    inside = ["env", *(f"{name}={value}" for name, value in own_cluster.items()), *CLUSTER, "exec", "--"]
    with ExitStack() as stack:
        stack.enter_context(registry.served(tls=True))
        shell = stack.enter_context(pages.Shell(ROOT, env))
        for block in pages.blocks((ROOT / "docs" / "quickstart.md").read_text(), "On a cluster"):
            if block.commands.startswith("helm install"):  # the node pulls from here on
                stack.enter_context(registry.served(inside, tls=False))
            if block.until:
                print(block.commands, shell.run(block, 600), sep="\n")
            kept = [flag for words, flags in NOT_TRIED.items() if block.commands.startswith(words) for flag in flags]
            assert not shell.survivors(block, 60, [*SHOWN_ELSEWHERE, *kept])
            if not block.until:  # the first push compresses gigabytes
                print(block.commands, shell.run(block, 1200), sep="\n")
