"""Log-probabilities of given tokens: their values, their ranks beside equal ones, and the likeliest tokens."""

from __future__ import annotations

import math

import pytest
import torch

from semipd_engine.sampling.sampler import token_logprobs

pytestmark = pytest.mark.unit

LOGITS = torch.log(torch.tensor([[0.4, 0.1, 0.2, 0.2, 0.1], [0.25, 0.25, 0.25, 0.125, 0.125]]))


@pytest.mark.parametrize(
    ("targets", "chances", "ranks"),
    [((0, 0), (0.4, 0.25), (1, 1)), ((2, 2), (0.2, 0.25), (2, 1)), ((3, 3), (0.2, 0.125), (2, 4)),
     ((1, 4), (0.1, 0.125), (4, 4))],
)  # fmt: skip
def test_ranks_count_what_is_more_likely(
    targets: tuple[int, int], chances: tuple[float, float], ranks: tuple[int, int]
) -> None:
    """Tokens that are as likely share a rank."""
    found = [token_logprobs(row, target, 2) for row, target in zip(LOGITS, targets, strict=True)]
    assert tuple(each.rank for each in found) == ranks
    assert [each.logprob for each in found] == pytest.approx([math.log(chance) for chance in chances])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_likeliest_come_in_their_order(count: int) -> None:
    for row in LOGITS:
        found = token_logprobs(row, 4, count)
        ids, values = [token for token, _ in found.top], [value for _, value in found.top]
        assert len(set(ids)) == count and values == sorted(values, reverse=True)
        assert values == pytest.approx(sorted(row.tolist(), reverse=True)[:count])
        assert values == pytest.approx(row[ids].tolist())
