"""The intervals and verdicts of `benchmarks/claims.py`."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import claims


def test_the_interval_inverts_the_signed_rank_test():
    # by enumeration: the cut is the largest c with P(T <= c - 1) <= level / 2 over all signs of the ranks
    x = np.array([0.3, -1.2, 0.8, 2.5, 0.1, 1.7, -0.4, 0.9])
    ranks = np.arange(1, len(x) + 1)
    totals = np.array([(ranks * signs).sum() for signs in product((0, 1), repeat=len(x))])
    level = 0.1
    cut = next(c for c in range(len(totals)) if (totals <= c).mean() > level / 2)
    walsh = sorted((x[i] + x[j]) / 2 for i in range(len(x)) for j in range(i, len(x)))
    centre, low, high = claims.interval(x, level)
    assert (low, high) == (walsh[cut - 1], walsh[-cut])
    assert low <= centre <= high


def test_the_interval_covers_the_centre_as_often_as_it_says():
    rng = np.random.default_rng(0)
    trials, level = 300, 0.1
    missed = 0
    for _ in range(trials):
        _, low, high = claims.interval(rng.laplace(size=10), level)
        missed += not low <= 0 <= high
    assert missed <= trials * level + 4 * (trials * level) ** 0.5


def test_too_few_seeds_allow_no_interval():
    with pytest.raises(ValueError, match="4 seeds allow no interval"):
        claims.interval(np.zeros(4), 0.01)


@pytest.mark.parametrize(
    ("direction", "low", "high", "said"),
    [
        (claims.LESS, 0.8, 0.9, "supported"),
        (claims.LESS, 1.1, 1.2, "not supported"),
        (claims.MORE, 1.1, 1.2, "supported"),
        (claims.MORE, 0.8, 0.9, "not supported"),
        (claims.MORE, 0.9, 1.1, "undecided at this size"),
        (claims.EQUAL, 0.99, 1.01, "supported"),
        (claims.EQUAL, 1.03, 1.05, "not supported"),
        (claims.EQUAL, 0.99, 1.05, "undecided at this size"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(direction, low, high, said):
    assert claims.verdict(direction, low, high) == said


def test_every_claim_has_a_name_of_its_own_for_each_side():
    every = claims.claims("texture")
    named = {}
    for claim in every:
        for side in (claim.new, claim.old):
            assert named.setdefault(side.recipe.name, side) == side
    assert {claim.watched for claim in every} >= {"usage", "perplexity", "quantization_error", "reconstruction"}


def test_float16_finds_what_float32_finds_on_a_coarse_grid():
    import torch

    layer = claims.HalfLookup(2, 4)
    layer.table.copy_(torch.tensor([[0.0, 0], [1, 0], [0, 1], [4, 4]]))
    assert layer.lookup(torch.tensor([[0.9, 0.2], [3.0, 5.0]])).tolist() == [1, 3]
