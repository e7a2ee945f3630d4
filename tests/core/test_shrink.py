"""The shrinker: small cases, the same label, a bounded number of re-runs."""

import torch

from vqverify.case import Case
from vqverify.shrink import shrink


def big() -> Case:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 6, generator=generator) * 100
    z[17, 3] = 731.25
    book = torch.randn(8, 6, generator=generator)
    return Case(z, torch.randn(40, 6, generator=generator), 5, (book,), (z[:3], z[3:6]))


def test_leaves_only_what_matters():
    small = shrink(big(), lambda case: bool((case.z > 700).any()))
    assert small.codebook is None
    assert not small.history
    assert small.z.shape == (1, 6)
    assert torch.count_nonzero(small.z) == 1
    assert torch.count_nonzero(small.g) == 0
    assert small.seed == 0


def test_keeps_what_the_failure_needs():
    small = shrink(big(), lambda case: len(case.history) >= 1 and case.codebook is not None and len(case.z) >= 4)
    assert len(small.history) == 1
    assert small.codebook is not None
    assert len(small.z) == 4
    assert small.size() == 0


def test_rounds_numbers():
    small = shrink(big(), lambda case: bool((case.z.abs() > 1.5).any()))
    assert small.z.abs().max() == 2


def test_respects_the_smallest_batch_and_the_budget():
    calls = 0

    def fails(case: Case) -> bool:
        nonlocal calls
        calls += 1
        return True

    small = shrink(big(), fails, min_n=3, most=50)
    assert len(small.z) >= 3
    assert calls <= 50
