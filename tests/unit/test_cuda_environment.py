"""What the processes that use a GPU find in their environment."""

from __future__ import annotations

import pytest

from semipd_engine.resident.cuda_environment import NOWHERE, without_mps, worker_environment

pytestmark = pytest.mark.unit

RUNG = {"CUDA_MPS_PIPE_DIRECTORY": "/run/spd/3/p", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "60"}


def test_the_resident_is_no_client_of_any_daemon() -> None:
    found = without_mps(RUNG | {"CUDA_MPS_LOG_DIRECTORY": "/x", "HOME": "/h"})
    assert {name: value for name, value in found.items() if "MPS" in name} == {"CUDA_MPS_PIPE_DIRECTORY": NOWHERE}
    assert found["HOME"] == "/h"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:64"},
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64,expandable_segments:False"},
        ),
        (
            {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
            {
                "PYTORCH_ALLOC_CONF": "expandable_segments:False",
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
            },
        ),
    ],
)
def test_segments_do_not_expand_whatever_the_user_set(before: dict[str, str], after: dict[str, str]) -> None:
    found = without_mps(before)
    assert {name: value for name, value in found.items() if "ALLOC" in name} == after


def test_a_worker_has_its_rungs_settings_and_no_others() -> None:
    resident = without_mps({"CUDA_MPS_CLIENT_PRIORITY": "1"})
    found = worker_environment(resident, RUNG)
    assert {name: value for name, value in found.items() if "MPS" in name} == RUNG
    assert worker_environment(resident, {})["CUDA_MPS_PIPE_DIRECTORY"] == NOWHERE  # no limit: no daemon either
