"""The statistical gate: level and power are what it says, and a rejection is made twice."""

import numpy as np
import pytest

from vqverify import statistics
from vqverify.statistics import Round, detectable, frequencies, rejects_null, samples_needed


def sampler(truth, law, n):
    def test(seed):
        rng = np.random.default_rng(seed)
        return frequencies([rng.multinomial(n, row) for row in truth], law)

    return test


@pytest.fixture
def law():
    return np.random.default_rng(0).dirichlet(np.ones(8), 3)


def test_budget_of_a_run_is_kept_by_the_levels_of_its_clauses():
    # both rounds reject with probability level² at most, on fresh randomness
    assert pytest.approx(statistics.BUDGET) == statistics.LEVEL**2 * statistics.TESTS
    assert statistics.BUDGET <= 1e-6


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_level_of_one_round_is_at_most_what_it_says(law, level):
    test = sampler(law[:1, :4] / law[:1, :4].sum(), law[:1, :4] / law[:1, :4].sum(), 200)
    rejected = sum(test(seed).p_value <= level for seed in range(1000))
    # three standard deviations above the level itself; Bonferroni and discreteness lie below it
    assert rejected <= 1000 * level + 3 * np.sqrt(1000 * level)


def test_level_of_a_clause_is_the_square_of_a_round():
    rounds = []

    def uniform(seed):
        rounds.append(seed)
        return Round(float(np.random.default_rng(seed).uniform()), "", "")

    failed = sum(not rejects_null(uniform, seed, "l", "m", level=0.1).holds for seed in range(4000))
    # 4000 · 0.01 = 40, ± 4 standard deviations
    assert 15 <= failed <= 65
    assert len(set(rounds)) == len(rounds)


def test_a_stated_effect_is_found(law):
    n = 2000
    effect = detectable(n, statistics.LEVEL / law.size / 2)
    law = np.full((3, 2), 0.5)
    shifted = law + np.array([[effect, -effect], [0, 0], [0, 0]])
    found = sum(not rejects_null(sampler(shifted, law, n), seed, "l", "m").holds for seed in range(200))
    assert found >= 190  # power 0.99


def test_samples_needed_is_what_detects():
    n = samples_needed(0.05, cells=64)
    assert detectable(n, statistics.LEVEL / 128) <= 0.05
    assert detectable(n // 2, statistics.LEVEL / 128) > 0.05
    with pytest.raises(ValueError, match="effect must lie"):
        samples_needed(0.7, cells=2)


def test_slack_and_floor_widen_the_null():
    assert frequencies([[600, 400]], [[0.5, 0.5]]).p_value < 1e-6
    assert frequencies([[600, 400]], [[0.5, 0.5]], slack=0.25).p_value == 1
    assert frequencies([[999, 1]], [[1.0, 0.0]]).p_value == 0
    assert frequencies([[999, 1]], [[1.0, 0.0]], floor=1e-3).p_value > 0.1


def test_message_says_what_was_seen_or_what_would_have_been(law):
    fine = rejects_null(sampler(law, law, 500), 1, "law", "codes do not follow the law")
    wrong = rejects_null(sampler(law[::-1], law, 500), 1, "law", "codes do not follow the law")
    assert fine.holds
    assert "detects a frequency that is off by" in fine.message
    assert not wrong.holds
    assert "times of 500 at latent" in wrong.message
    assert wrong.margin is not None
    assert wrong.margin > 1


def test_a_test_that_gives_no_probability_is_a_fault_of_the_test():
    with pytest.raises(ValueError, match="p-value"):
        rejects_null(lambda _: Round(float("nan"), "", ""), 0, "l", "m")
