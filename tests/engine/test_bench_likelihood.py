"""The benchmark's likelihood of real text tells a spoilt model from ours: what it calls equal means something."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cpu.identity import documents
from bench.cpu.probes import compared, our_scores, reference_scores, text_windows
from bench.cpu.verdicts import within
from e2e.lib.models import smollm2

pytestmark = pytest.mark.engine


def coarser(model: Any) -> None:
    """Matrices keep five of bfloat16's eight significant bits."""
    import torch

    for weights in model.parameters():
        if weights.dim() == 2:
            weights.copy_((weights.view(torch.int16) + 4 & ~7).view(torch.bfloat16))


def test_weights_with_three_bits_less_are_noticed_and_ours_are_not() -> None:
    model = smollm2()
    windows = text_windows(model, documents(), 1_000)
    theirs = list(reference_scores(model, windows))
    ours, spoilt = (
        compared(found, theirs)
        for found in (list(our_scores(model, windows)), list(reference_scores(model, windows, coarser)))
    )
    assert spoilt["difference_percent"] > 0.2 and ours["error_percent"] < spoilt["error_percent"]
    assert within(spoilt["difference_percent"], spoilt["error_percent"]) is False
    assert within(ours["difference_percent"], ours["error_percent"]) is not False
    assert ours["tokens"] == 1_000
