"""Errata of "Straightening out the straight-through estimator" (001), body."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import sympy as sp

from vqverify.symbolic.errata.erratum import Erratum, against
from vqverify.symbolic.exact import round_to, same

z, q, eta, kappa, N, m, n, S, code, y = sp.symbols("z q eta kappa N m n S c y", real=True)
gamma: Any = sp.Symbol("gamma", positive=True)
h: Any = sp.Symbol("h", positive=True)


def _conventions(claim: Any) -> bool:
    # alpha·A_beta has the gradients of V_b at b = ¼
    alpha, beta = claim
    held, frozen = sp.symbols("held frozen")
    squares = [(z - held) ** 2, (frozen - q) ** 2]
    ours = alpha * ((1 - beta) * squares[0] / 2 + beta * squares[1] / 2)
    theirs = squares[1] + squares[0] / 4
    values = {held: q, frozen: z}
    return all(same(sp.diff(ours - theirs, name).subs(values), 0) for name in (z, q))


def _ema_rate(rate: Any) -> bool:
    loss = -code * S + n * code**2 / 2
    averaged = (gamma * N * code + (1 - gamma) * S) / (gamma * N + (1 - gamma) * n)
    return same(code - rate * sp.diff(loss, code), averaged)


def _distance(of_the_difference: bool) -> bool:
    # two pairs with the difference (1, 0) under the cosine distance
    pairs = [((1, 1), (0, 1)), ((2, 1), (1, 1))]
    one, other = (_cosine(sp.Matrix(left), sp.Matrix(right)) for left, right in pairs)
    return same(one, other) is of_the_difference


def _cosine(left: Any, right: Any) -> Any:
    return 1 - left.dot(right) / sp.sqrt(left.dot(left) * right.dot(right))


def _gap(bound: Any) -> bool:
    # ½κ|x|² has gap κh; at h = 1/10 and κ = 1 a bound must reach it, and L = 50y² with G = x has κ = 100
    loss = kappa * y**2 / 2
    gap = sp.diff(loss, y).subs(y, q + h) - sp.diff(loss, y).subs(y, q)
    examples = [{kappa: size, h: sp.Rational(1, 10)} for size in (1, 100)]
    return all(bool(gap.subs(example) <= bound.subs(example)) for example in examples)


def _zero_gap(descends: bool) -> bool:
    # L(x) = x, C = {0}: the latent runs off, the code, the loss and the gap (0) stay
    latent, losses, gaps = sp.Integer(1), [], []
    for _ in range(10):
        nearest = sp.Integer(0)
        losses.append(nearest)
        slope: Any = sp.diff(y, y)
        gaps.append(slope.subs(y, latent) - slope.subs(y, nearest))
        latent -= slope / 2
    return not any(gaps) and any(later < earlier for earlier, later in pairwise(losses)) is descends


def _divergence(one: Any, other: Any) -> Any:
    """KL(one ‖ other) of finite distributions, with 0 ln 0 = 0 and infinite where other lacks mass."""
    pairs = [(p, m) for p, m in zip(one, other, strict=True) if p != 0]
    return sp.oo if any(m == 0 for _, m in pairs) else sum(p * sp.log(p / m) for p, m in pairs)


def _side(divergence: Any) -> bool:
    """D(P, C) of eq. 13 against a divergence of P from the uniform distribution on C, for every codebook of three.

    They have to be alike in what they charge: D is 0 where the divergence is finite, and a code that no latent
    selects, where P has no mass, gets no gradient from either.
    """
    places, latents = (0, 1, 5), (0, 1)
    mass = [sp.Rational(int(place in latents), len(latents)) for place in places]
    for size in (1, 2, 3):
        for codes in combinations(places, size):
            distortion = sum(min((latent - entry) ** 2 for entry in codes) for latent in latents)
            model = [sp.Rational(int(place in codes), size) for place in places]
            if (distortion == 0) is (divergence(mass, model) == sp.oo):
                return False
    p, m = sp.symbols("p m", positive=True)
    pull = sp.limit(sp.diff(divergence([p], [m]), m), p, 0, "+")
    return pull == 0


def _moments(claim: Any) -> bool:
    # KL(N(0, 1) ‖ N(0, r·Σ_C)) has its minimum over the scale r where the claim puts it, for Σ_C = [[1, w], [w, 1]]
    w, r = sp.symbols("w r", positive=True)
    spread = sp.Matrix([[1, w], [w, 1]])
    divergence = ((spread.inv() / r).trace() - 2 + 2 * sp.log(r) + sp.log(spread.det())) / 2
    where = sp.solve(sp.diff(divergence, r), r)
    return len(where) == 1 and same(where[0], claim(w))


def _receives(claim: Any) -> bool:
    # codes c_j = (1 + S)x_j + b, of which only c_1 is selected: (∂x_2, whether c_2 moves)
    scale, shift, first, second = sp.symbols("S b x_1 x_2")
    codes = [(1 + scale) * entry + shift for entry in (first, second)]
    loss = (codes[0] - y) ** 2 / 2
    rate = {name: eta * sp.diff(loss, name) for name in (scale, shift, first, second)}
    moved = codes[1].subs({name: name - step for name, step in rate.items()}, simultaneous=True)
    return (sp.diff(loss, second) != 0, not same(moved, codes[1])) == claim


def _half(answer: int) -> bool:
    latent, codes = 2049, (2051, 2046)
    apart = [abs(round_to(latent, 11) - round_to(entry, 11)) for entry in codes]
    exact = [abs(latent - entry) for entry in codes]
    return exact.index(min(exact)) == 0 and apart.index(min(apart)) == answer


ERRATA = (
    Erratum(
        "001.s2",
        "001 §2",
        "α = 10, β = 0.9 beside the citation of VQ-VAE",
        "b = ¼ of VQ-VAE is β = 0.8, α = 2.5 in this convention",
        "T16",
        "α·A_β has the gradients of V_b at b = ¼",
        against((10, sp.Rational(9, 10)), (sp.Rational(5, 2), sp.Rational(4, 5))),
        _conventions,
    ),
    Erratum(
        "001.eq11",
        "001 eq. 11",
        "EMA is SGD with rate 1 − γ",
        "with counts the rate is (1 − γ)/N', step (1 − γ)n/N'",
        "T17",
        "one SGD step on Σ½|z − c|² equals m'/N'",
        against(1 - gamma, (1 - gamma) / (gamma * N + (1 - gamma) * n)),
        _ema_rate,
    ),
    Erratum(
        "001.eq12",
        "001 eq. 12",
        "d(z − c)",
        "d(z, c)",
        "T27",
        "whether the cosine distance depends on the difference alone: two pairs with one difference",
        against(True, False),
        _distance,
    ),
    Erratum(
        "001.s3.2-bound",
        "001 §3.2",
        "gap ≤ K·d(z_e, z_q) with d = ½|·|², G K-Lipschitz smooth",
        "gap ≤ κ|z_e − z_q|, L∘G κ-smooth",
        "T9",
        "the gap of ½κ|x|² at h = 1/10, κ = 1 and 100",
        against(kappa * h**2 / 2, kappa * h),
        _gap,
    ),
    Erratum(
        "001.s3.2-zero",
        "001 §3.2",
        "gap 0 implies that the loss is minimised",
        "it implies no descent",
        "T12",
        "L linear, C = {0}: ten exact steps with gap 0",
        against(True, False),
        _zero_gap,
    ),
    Erratum(
        "001.s3.1",
        "001 §3.1",
        "analogous to the reverse KL, for codes outside the support of P get no gradient",
        "to the forward KL, an expectation under P: latents must be covered, codes need not be",
        "T33",
        "D(P, C) and KL for all codebooks out of {0, 1, 5}, P = {0, 1}; the gradient at a code without latents",
        against(lambda mass, model: _divergence(model, mass), _divergence),
        _side,
    ),
    Erratum(
        "001.s4.1-kl",
        "001 §4.1",
        "matching the moments minimises the KL divergence",
        "only for a diagonal codebook covariance",
        "T26",
        "the scale of least KL for correlation w is r = 1/(1 − w²)",
        against(lambda w: sp.Integer(1) + 0 * w, lambda w: 1 / (1 - w**2)),
        _moments,
    ),
    Erratum(
        "001.s4.1-gradients",
        "001 §4.1, Fig. 10",
        "all codes receive gradients",
        "all codes move; ∂x_j = 0 if unused",
        "T25",
        "two affine codes, one of them selected",
        against((True, True), (False, True)),
        _receives,
    ),
    Erratum(
        "001.A1",
        "001 A.1",
        "half precision adds no imprecision",
        "it changes the nearest code",
        "T29",
        "z = 2049, C = {2051, 2046}: the index in float16",
        against(0, 1),
        _half,
    ),
)
