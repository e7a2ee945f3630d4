"""The generated oracles: against explicit matrices, against mpmath, and one source of truth."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqverify.symbolic import commitment, ema, gap, generated, householder, oracles
from vqverify.symbolic.notation import identity, s, sigma, uhat, vhat

U = 2.0**-53


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(3, 20, 7))


def dense(e, q):
    u, v = e / np.linalg.norm(e), q / np.linalg.norm(q)
    w = u + v
    rotation = np.eye(e.size) - 2 * np.outer(w, w) / (w @ w) + 2 * np.outer(v, u)
    return rotation * np.linalg.norm(q) / np.linalg.norm(e)


def test_rotation_equals_the_explicit_matrix(rows):
    z, q, g = rows
    expected = np.stack([dense(e, code).T @ x for e, code, x in zip(z, q, g, strict=True)])
    np.testing.assert_allclose(oracles.rotation_vjp(z, q, g), expected, rtol=1e-12, atol=1e-12)
    forward = np.stack([dense(e, code) @ x for e, code, x in zip(z, q, g, strict=True)])
    np.testing.assert_allclose(oracles.rotation_jvp(z, q, g), forward, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(oracles.rotation_jvp(z, q, z), q, rtol=1e-12)


@given(st.integers(1, 2**32 - 1), st.integers(2, 40), st.floats(1e-6, 1.0))
def test_float64_oracle_is_within_b1_of_mpmath(seed, dim, opening):
    z, g, t = np.random.default_rng(seed).normal(size=(3, 2, dim))
    q = -z + opening * t  # towards antiparallel, where sigma is small
    unit_z, unit_q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, q))
    bound = oracles.bound_b1(dim, np.linalg.norm(unit_z + unit_q, axis=1), U)
    scale = np.linalg.norm(q, axis=1) / np.linalg.norm(z, axis=1) * np.linalg.norm(g, axis=1)
    error = np.linalg.norm(oracles.rotation_vjp(z, q, g) - oracles.rotation_vjp_exact(z, q, g), axis=1)
    assert np.all(error <= bound * scale)


def test_rows_outside_the_hypotheses_are_nan():
    z, q, g = np.array([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [3.0, 1.0]]), np.ones((4, 2)), np.ones((4, 2))
    q[1], q[2] = 0, [-2.0, -4.0]
    for oracle in (oracles.rotation_vjp, oracles.rotation_vjp_exact):
        assert np.isnan(oracle(z, q, g)).all(axis=1).tolist() == [True, True, True, False]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"one shape \(N, D\)"):
        oracles.rotation_vjp(np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="convention"):
        oracles.commitment_gradients(np.ones((2, 3)), np.ones((2, 3)), "W", 0.5)  # type: ignore[arg-type]


def test_ema_and_laplace(rows):
    counts, n = np.array([2.0, 0.5]), np.array([3.0, 0.0])
    m, S = rows[0][:2], rows[1][:2] * n[:, None]
    state = oracles.ema_step(counts, m, n, S, 0.9)
    np.testing.assert_allclose(state.N, 0.9 * counts + 0.1 * n)
    np.testing.assert_allclose(state.e * state.N[:, None], 0.9 * m + 0.1 * S)
    np.testing.assert_allclose(state.e[1], m[1] / counts[1])
    smoothed = oracles.laplace(counts, 1e-2)
    assert smoothed.sum() == pytest.approx(counts.sum())
    assert smoothed[1] > counts[1]


@pytest.mark.parametrize("convention", ["A", "V"])
def test_commitment_gradients(rows, convention):
    z, q, _ = rows
    beta = 0.3
    dz, dq, value = oracles.commitment_gradients(z, q, convention, beta)
    weights = ((1 - beta), beta, 0.5) if convention == "A" else (2 * beta, 2, 1 + beta)
    np.testing.assert_allclose(dz, weights[0] * (z - q))
    np.testing.assert_allclose(dq, weights[1] * (q - z))
    np.testing.assert_allclose(value, weights[2] * ((z - q) ** 2).sum(axis=1))


def test_gap_bounds():
    assert oracles.gap_bound_ste(2.0, 0.5) == 1.0
    assert oracles.gap_bound_rotation(2.0, 3.0, 1.5, 0.5) == 2.0
    np.testing.assert_array_equal(oracles.gap_bound_hessian([2.0, 4.0], 0.5), [0.25, 0.5])


@pytest.fixture
def regenerate():
    yield generated.clear
    generated.clear()


def test_a_changed_formula_changes_the_rotation_oracle(rows, monkeypatch, regenerate):
    z, q, g = rows
    right = oracles.rotation_vjp(z, q, g)
    wrong = identity - 2 * s * s.T / sigma**2 + 2 * uhat * vhat.T  # transposed
    changed = dataclasses.replace(householder.ALGEBRA, stated={**householder.ALGEBRA.stated, "R": wrong})
    monkeypatch.setattr(householder, "ALGEBRA", changed)
    regenerate()
    other = oracles.rotation_vjp(z, q, g)
    assert not np.allclose(right, other)
    pairing = np.einsum("nd,nd->n", z, other) - np.einsum("nd,nd->n", q, g)
    assert np.abs(pairing).max() > 1e-3  # the property of T2 fails on the changed oracle
    assert not changed.prove().holds
    monkeypatch.undo()
    regenerate()
    np.testing.assert_array_equal(oracles.rotation_vjp(z, q, g), right)


@pytest.mark.parametrize(
    ("module", "name", "formula", "call"),
    [
        (ema, "STEP", "N'", lambda: oracles.ema_step([2.0], [[1.0]], [3.0], [[5.0]], 0.9).e),
        (ema, "LAPLACE", "N̂", lambda: oracles.laplace([1.0, 3.0], 0.1)),
        (
            commitment,
            "CONVENTIONS",
            "A ∂z",
            lambda: oracles.commitment_gradients([[1.0]], [[3.0]], "A", 0.3).dz,
        ),
    ],
)
def test_a_changed_formula_changes_the_oracle(module, name, formula, call, monkeypatch, regenerate):
    before = call()
    derivation = getattr(module, name)
    monkeypatch.setattr(
        module,
        name,
        dataclasses.replace(derivation, stated={**derivation.stated, formula: derivation.stated[formula] * 2}),
    )
    regenerate()
    assert not np.allclose(before, call())
    assert not getattr(module, name).prove().holds


def test_importing_the_oracles_imports_no_sympy():
    code = "import sys, vqverify.symbolic.oracles; assert 'sympy' not in sys.modules and 'mpmath' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_formula_with_an_unknown_symbol_is_refused(monkeypatch, regenerate):
    source = ema.LAPLACE
    monkeypatch.setattr(ema, "LAPLACE", dataclasses.replace(source, stated={"N̂": source.stated["N̂"] + uhat[0, 0]}))
    regenerate()
    with pytest.raises(ValueError, match="needs"):
        oracles.laplace([1.0, 2.0], 0.1)


@pytest.mark.parametrize(
    ("module", "name", "formula", "wrong", "rows"),
    [
        (householder, "ALGEBRA", "R", identity - 2 * s * s.T / sigma**2 + 2 * uhat * vhat.T, ("estimator.jacobian",)),
        (commitment, "CONVENTIONS", "A ∂q", -commitment.CONVENTIONS.stated["A ∂q"], ("update.ema_is_commitment",)),
        (gap, "ROTATION", "bound", gap.ROTATION.stated["bound"] / 2, ("gap.bound",)),
        (ema, "STEP", "N'", ema.STEP.stated["N'"] * 2, ("update.ema_law",)),
    ],
)
def test_a_changed_formula_fails_the_rows_that_rest_on_it(module, name, formula, wrong, rows, monkeypatch, regenerate):
    from vqverify.api import check_quantizer

    def failed():
        regenerate()
        report = check_quantizer("vqverify.reference:VectorQuantizer", {"dim": 4, "codebook_size": 8}, only=rows)
        return {
            result.invariant for subject in report.subjects for result in subject.results if result.status == "failed"
        }

    assert not failed()
    derivation = getattr(module, name)
    changed = dataclasses.replace(derivation, stated={**derivation.stated, formula: wrong})
    monkeypatch.setattr(module, name, changed)
    assert failed() == set(rows)
    assert not changed.prove().holds
