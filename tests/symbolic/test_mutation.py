"""A prover that can fail: wrong statements are refuted, and those that are not are right all the same."""

import pytest
import sympy as sp

from vqverify.symbolic import catalogue, mutation
from vqverify.symbolic.derivation import Derivation, algebra, lemma
from vqverify.symbolic.notation import c, sigma

# Statements that a mutator changed without making them wrong, each looked at.
EQUIVALENT = {
    ("rotation.algebra", "R by M", "transpose factor"): "Mᵀ = −M, so (Mᵀ)² = M²",
    ("rotation.algebra", "R by M", "sign"): "(−M)² = M²",
    ("rotation.extremal", "mirror", "exchange uhat, vhat"): "the reflection in û − v̂ is that in v̂ − û",
    ("rotation.degenerate", "limit of R along t", "exchange t, uhat"): "ûûᵀ + ttᵀ is symmetric in both",
    ("stochastic.law", "softmax Jacobian", "exchange y_i, y_j"): "the Jacobian is symmetric, δ_ij y_i = δ_ij y_j",
}


def survivors(tried):
    return [m for m in tried if not m.refuted and (m.derivation, m.name, m.change) not in EQUIVALENT]


def test_a_sample_of_wrong_statements_is_refuted():
    tried = [mutant for one in catalogue.derivations() for mutant in mutation.campaign(one, every=29)]
    assert len(tried) > 70
    assert not survivors(tried)


@pytest.mark.nightly
def test_wrong_statements_are_refuted():
    tried = [mutant for one in catalogue.derivations() for mutant in mutation.campaign(one)]
    equivalent = [mutant for mutant in tried if not mutant.refuted]
    assert len(tried) > 2300
    assert sum(bool(mutant.refuted) for mutant in tried) / len(tried) >= 0.95
    assert not survivors(tried)
    assert {(m.derivation, m.name, m.change) for m in equivalent} == set(EQUIVALENT)
    # refuted by what the formula says, seldom by a formula that cannot be evaluated
    assert sum(mutant.by.endswith("]") for mutant in tried) / len(tried) < 0.05


@pytest.mark.nightly
def test_wrong_errata_are_refuted():
    # either claim put in the other's place
    for one in catalogue.errata():
        assert not one.prove({"printed": one.claims["right"], "right": one.claims["right"]}).holds, one.id
        assert not one.prove({"printed": one.claims["printed"], "right": one.claims["printed"]}).holds, one.id


@pytest.mark.parametrize("theorem", [f"T{n}" for n in range(1, 38)])
def test_every_stated_formula_is_read_by_a_step(theorem):
    one = catalogue.derivation(theorem)
    idle = [name for name, steps in mutation.readers(one).items() if not steps]
    assert not idle, f"no step checks {idle}"


def test_a_formula_that_no_step_checks_survives():
    idle = Derivation("x.y", "T0", "", "", "", (), "", {"idle": 2 * c}, (algebra("nothing", lambda _: True),))
    assert all(not mutant.refuted for mutant in mutation.campaign(idle))


def test_lemmas_alone_prove_nothing():
    assert not Derivation("x.y", "T0", "", "", "", (), "", {}, (lemma("cited"),)).prove().holds


def test_the_mutator_changes_trees_everywhere():
    one = Derivation("x.y", "T0", "", "", "", (), "", {"f": 2 * c + 1 / sigma**2}, ())
    formulas = {mutant.formula for mutant in mutation.mutants(one)}
    assert {2 * c - 1 / sigma**2, -2 * c + 1 / sigma**2, 2 * c, c + 1 / sigma**2, 2 * c + sigma**2} <= formulas
    assert sp.expand(2 * c + 1 / sigma**2) not in formulas
