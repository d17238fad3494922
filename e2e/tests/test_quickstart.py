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
"""tests/unit/test_pages.py shows what their loss does: nothing to a request that goes well."""
NOT_HERE = {
    # Where the release goes and of which images: a wrong one blocks the name. tests/unit/test_chart.py shows it.
    "helm install": ("--namespace", "--set", "--wait"),  # and without --wait the next block may look too early, or not
    "kubectl wait": ("--timeout",),  # patience, for slow machines; what comes is the same
}
"""By the first words of a block: flags that are renamed only."""
ONCE = ("make images", "helm install", "kubectl delete")
"""Blocks that work once, so that their changes are tried before; the others are run first: what fails after that fails
for its change."""
ALTERED = ROOT / "out-altered"
"""Where a changed `--destination` packs to."""


@pytest.fixture
def own_cluster() -> Iterator[dict[str, str]]:
    """Environment of another cluster than the session's; its folder is on the images' file system."""
    run = paths.cache_dir() / f"quickstart-{uuid4().hex[:8]}"
    own = {"SEMIPD_RUN": str(run)}
    yield own
    subprocess.run(["hack/cluster/cluster", "down"], cwd=ROOT, env=os.environ | own, check=False)
    shutil.rmtree(run, ignore_errors=True)


@pytest.fixture
def own_charts(tmp_path: Path) -> Iterator[None]:
    """Packed charts that are here lie elsewhere meanwhile: what is in their places is what the test made."""
    assert not ALTERED.exists(), f"{ALTERED} is in the way of this test: move it"
    aside = {file: tmp_path / f"{number}.tgz" for number, file in enumerate(packed_charts())}
    for file, place in aside.items():
        shutil.move(file, place)
    yield
    remove_packed_charts()
    for file, place in aside.items():
        shutil.move(place, file)


def packed_charts() -> list[Path]:
    return [file for folder in (ROOT, ROOT / "out") for file in folder.glob("semipd-operator-*.tgz")]


def remove_packed_charts() -> None:
    for file in packed_charts():
        file.unlink()
    shutil.rmtree(ALTERED, ignore_errors=True)


@pytest.mark.usefixtures("own_charts")
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
            once = block.commands.startswith(ONCE)
            if not once:
                print(block.commands, shell.run(block, 600), sep="\n")
            kept = [flag for words, flags in NOT_HERE.items() if block.commands.startswith(words) for flag in flags]
            remove_packed_charts()  # of the run above: it would be pushed all the same
            assert not shell.survivors(block, 20, [*SHOWN_ELSEWHERE, *kept])
            remove_packed_charts()
            if once:  # the first push compresses gigabytes
                print(block.commands, shell.run(block, 1200), sep="\n")
