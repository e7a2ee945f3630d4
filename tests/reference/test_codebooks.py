"""Moving averages: the recursion, its conservation laws, unused codes, smoothing, half precision."""

import pytest
import torch

from vqverify.reference import EmaState, Statistics, code_statistics, ema_update, laplace_counts
from vqverify.reference.codebooks import LEAST_COUNT


def fresh(k=5, dim=3, dtype=torch.float64):
    codes = torch.randn(k, dim, dtype=dtype)
    return EmaState(codes, torch.ones(k, dtype=dtype), codes.clone())


def test_statistics_are_counts_and_sums():
    z = torch.randn(40, 3)
    codes = torch.randint(0, 4, (40,))
    batch = code_statistics(z, codes, 5)
    one_hot = torch.nn.functional.one_hot(codes, 5).float()
    assert torch.equal(batch.counts, one_hot.sum(0))
    assert torch.allclose(batch.sums, one_hot.T @ z, atol=1e-5)


def test_masked_latents_do_not_count_even_if_nan():
    z = torch.tensor([[1.0], [float("nan")], [2.0]])
    batch = code_statistics(z, torch.tensor([1, -1, 1]), 2, masked=True)
    assert batch.counts.tolist() == [0, 2]
    assert batch.sums.tolist() == [[0], [3]]


def test_update_is_the_recursion_and_conserves():
    old = fresh()
    z, codes = torch.randn(20, 3, dtype=torch.float64), torch.randint(0, 4, (20,))
    batch = code_statistics(z, codes, 5)
    new = ema_update(old, batch, 0.9)
    assert torch.allclose(new.counts, 0.9 * old.counts + 0.1 * batch.counts)
    assert torch.allclose(new.sums, 0.9 * old.sums + 0.1 * batch.sums)
    assert torch.allclose(new.codebook, new.sums / new.counts[:, None])
    assert torch.allclose(new.counts.sum(), 0.9 * old.counts.sum() + 0.1 * 20)
    assert torch.allclose(new.sums.sum(0), 0.9 * old.sums.sum(0) + 0.1 * z.sum(0))


def test_unused_code_stays_for_ever():
    state = fresh(dtype=torch.float32)
    first = state.codebook.clone()
    batch = code_statistics(torch.ones(2, 3), torch.tensor([0, 0]), 5)
    for _ in range(10_000):
        state = ema_update(state, batch, 0.9)
    assert torch.equal(state.codebook[1:], first[1:])
    assert (state.counts[1:] == LEAST_COUNT).all()
    # m/N drifts by at most (2t + 1) u (T20), for the steps until N stops: 395 at decay 0.9
    assert torch.allclose(state.sums[1:] / LEAST_COUNT, first[1:], rtol=2 * 400 * 2.0**-24, atol=0)
    assert torch.allclose(state.codebook[0], torch.ones(3))


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_at_its_ends(decay):
    state = fresh()
    z = torch.randn(2, 3, dtype=torch.float64)
    new = ema_update(state, code_statistics(z, torch.tensor([0, 0]), 5), decay)
    expected = z.mean(0) if decay == 0 else state.codebook[0]
    assert torch.allclose(new.codebook[0], expected)
    assert torch.equal(new.codebook[1:], state.codebook[1:])
    if decay == 1:
        assert torch.equal(new.codebook, state.codebook)


def test_smoothing_shrinks_by_rho():
    state = fresh()
    z, codes = torch.randn(20, 3, dtype=torch.float64), torch.randint(0, 4, (20,))
    new = ema_update(state, code_statistics(z, codes, 5), 0.9, smoothing=0.5)
    n, total, k, eps = new.counts, new.counts.sum(), 5, 0.5
    rho = n * (total + k * eps) / (total * (n + eps))
    assert torch.allclose(new.codebook, rho[:, None] * new.sums / n[:, None])
    assert torch.allclose(laplace_counts(n, eps).sum(), total)


def test_half_precision_statistics_are_float32():
    z = torch.ones(5000, 1, dtype=torch.bfloat16)
    batch = code_statistics(z, torch.zeros(5000, dtype=torch.int64), 1)
    assert batch.counts.item() == 5000
    assert batch.sums.item() == 5000


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan"), "0.9"])
def test_bad_decay_is_named(decay):
    with pytest.raises(ValueError, match="decay must be a number in"):
        ema_update(fresh(), Statistics(torch.zeros(5), torch.zeros(5, 3)), decay)
