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
    found = token_logprobs(LOGITS, targets, (2, 2))
    assert tuple(each.rank for each in found) == ranks
    assert [each.logprob for each in found] == pytest.approx([math.log(chance) for chance in chances])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_likeliest_come_in_their_order(count: int) -> None:
    for row, found in zip(LOGITS, token_logprobs(LOGITS, (4, 4), (count, count)), strict=True):
        ids, values = [token for token, _ in found.top], [value for _, value in found.top]
        assert len(set(ids)) == count and values == sorted(values, reverse=True)
        assert values == pytest.approx(sorted(row.tolist(), reverse=True)[:count])
        assert values == pytest.approx(row[ids].tolist())


def test_a_row_is_scored_as_if_it_were_alone() -> None:
    """Among others that want more, or that hold no number."""
    logits = torch.randn(40, 3000, generator=torch.Generator().manual_seed(1)) * 4
    logits[7, 5], logits[9] = torch.nan, -torch.inf
    tokens, counts = [(31 * i) % 3000 for i in range(40)], [i % 4 for i in range(40)]
    together = token_logprobs(logits, tokens, counts)
    alone = [token_logprobs(logits[i : i + 1], tokens[i : i + 1], counts[i : i + 1])[0] for i in range(40)]
    assert [i for i, found in enumerate(together) if math.isnan(found.logprob)] == [7, 9]
    for i in set(range(40)) - {7, 9}:
        assert together[i] == alone[i] and len(together[i].top) == counts[i]
