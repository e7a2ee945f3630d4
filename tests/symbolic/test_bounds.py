"""Every stated bound, under a search for inputs that break it; the tight families reach it."""

import pytest

from vqverify.symbolic import catalogue

from . import bounds_gradients, bounds_learning, bounds_lookup, bounds_rotation
from .search import CASES, USED, climb

SUBJECTS = (bounds_rotation, bounds_gradients, bounds_learning, bounds_lookup)  # importing them registers their cases

# The theorems that state no bound, and why.
WITHOUT = {
    "T18": "equalities: what a wrong start does; T17 has the tolerance of the step",
    "T32": "probabilities, equal by counting; a sample is tested statistically",
}


def declared():
    return {(one.theorem, name) for one in catalogue.derivations() for name in (*one.bounds, *one.tolerances)}


def test_every_bound_is_attacked():
    attacked = {attack for one in CASES.values() for attack in one.attacks}
    assert not declared() - attacked
    assert not attacked - declared()


def test_every_theorem_states_a_bound_or_why_it_has_none():
    stating = {theorem for theorem, _ in declared()}
    assert {one.theorem for one in catalogue.derivations()} - stating == set(WITHOUT)
    # a formula that calls itself a bound is declared as one
    for one in catalogue.derivations():
        for name in one.stated:
            if any(word in name for word in ("bound", "at most", "at least")) and "slack" not in name:
                assert name in one.bounds, f"{one.theorem}: {name}"
        assert set(one.bounds) <= set(one.stated)


@pytest.mark.parametrize("name", sorted(CASES))
def test_no_input_breaks_the_bound_and_it_is_not_idle(name):
    one = CASES[name]
    USED.clear()
    reached = climb(one.ratio, one.size)
    assert one.floor <= reached <= 1 + 1e-12, f"{name}: the search reached {reached:.4g} of the bound"
    assert one.attacks <= USED, f"{name} does not read {sorted(one.attacks - USED)}"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 21))
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_longer_search_does_not_break_it(name, seed):
    one = CASES[name]
    assert climb(one.ratio, one.size, seed=seed, population=800, rounds=120, scale=8.0) <= 1 + 1e-12
