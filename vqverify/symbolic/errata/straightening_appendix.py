"""Errata of "Straightening out the straight-through estimator" (001): statistics, bounds, moments and tables."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import sympy as sp

from vqverify.symbolic.errata.erratum import Erratum, against
from vqverify.symbolic.exact import same

code = sp.Symbol("c", real=True)
points = sp.symbols("z1:4", real=True)
mean_e, mean_q = sp.symbols("mu_e mu_q", real=True)
std_e, std_q = sp.symbols("sigma_e sigma_q", positive=True)


def _mean(values: Any) -> Any:
    return sum(values) / sp.Integer(len(values))


def _variance(values: Any) -> Any:
    return _mean([(value - _mean(values)) ** 2 for value in values])


def _average(measure: Any) -> bool:
    # the average of eq. 14's unsquared norms: of degree 1, and a batch repeated changes nothing
    norms = (sp.Integer(3), sp.Integer(4))
    return same(measure([2 * norm for norm in norms]), 2 * measure(norms)) and same(measure(norms * 2), measure(norms))


def _positions(divisor: Any) -> bool:
    rows = cols = list(range(32))
    for _ in range(3):  # a 2×2 pooling keeps one of each pair, along both axes
        rows, cols = rows[::2], cols[::2]
    return len(rows) * len(cols) == sp.Rational(32 * 32) / divisor.subs(sp.Symbol("n"), 3)


def _upper(bound: Any) -> bool:
    # the mean loss of one code, for three latents; and it must bound the loss of P = δ_0, C = {1}
    loss = _mean([(point - code) ** 2 / 2 for point in points])
    names = {sp.Symbol("Var"): _variance(points), sp.Symbol("dist2"): (_mean(points) - code) ** 2}
    example = {**dict.fromkeys(points, 0), code: 1}
    stated = bound.subs(names)
    return same(loss, stated) and bool(loss.subs(example) <= stated.subs(example))


def _balls(claim: Any) -> bool:
    # two balls around their codes: how many there are, and their total against the sum with one index
    balls, codes = ((0, 2), (10, 13)), (0, 12)
    number, total = claim
    paired = sum((point - entry) ** 2 for ball, entry in zip(balls, codes, strict=True) for point in ball)
    stated = sum(total(ball, entry) for ball, entry in zip(balls, codes, strict=True))
    return len(range(*number(2))) == 2 and same(paired, stated)


def _two_statistics(difference: Any) -> bool:
    # three codes selected n_1, n_2, n_3 times: the mean of z_q less the mean of C
    codes, counts = sp.symbols("c1:4", real=True), sp.symbols("n1:4", positive=True)
    selected = sum(count * entry for count, entry in zip(counts, codes, strict=True)) / sum(counts)
    # and by selecting, at latents 0 and 1 with C = {0, 10, 20}
    places = (0, 10, 20)
    nearest = [min(places, key=lambda entry: abs(entry - latent)) for latent in (0, 1)]
    used = [nearest.count(place) for place in places]
    example = {**dict(zip(codes, places, strict=True)), **dict(zip(counts, used, strict=True))}
    return same(selected - _mean(codes), difference(codes, counts)) and same(
        _mean(nearest) - _mean(places), difference(codes, counts).subs(example)
    )


def _shift(shift: Any) -> bool:
    # codes with mean μ_q, moved: their mean must be μ_e
    raw = (mean_q - 1, mean_q, mean_q + 1)
    return same(_mean([std_e / std_q * (entry - mean_q) + shift for entry in raw]), mean_e)


def _affine(claim: Any) -> bool:
    shift, scale = claim
    return same(scale * code + shift, std_e / std_q * (code - mean_q) + mean_e)


def _table10(claim: Any) -> bool:
    # accuracies: baseline 46.94, one step 52.54, eight steps 58.03
    baseline, one, eight = Decimal("46.94"), Decimal("52.54"), Decimal("58.03")
    return claim == (one - baseline, eight - one)


ERRATA = (
    Erratum(
        "001.A3",
        "001 A.3",
        "an average, of squares that are summed",
        "the average of unsquared norms (eq. 14)",
        "T9",
        "degree 1, unchanged by repeating the batch",
        against(lambda norms: sum(norm**2 for norm in norms), _mean),
        _average,
    ),
    Erratum(
        "001.eq29",
        "001 eq. 29",
        "bhw/2^n",
        "bhw/4^n",
        "T32",
        "count the positions of 32² after three poolings",
        against(2 ** sp.Symbol("n"), 4 ** sp.Symbol("n")),
        _positions,
    ),
    Erratum(
        "001.eq33",
        "001 eq. 33",
        "the loss is at most ½Var",
        "½Var + ½dist(μ, C)²",
        "T33",
        "three latents and one code; P = δ_0, C = {1}",
        against(sp.Symbol("Var") / 2, (sp.Symbol("Var") + sp.Symbol("dist2")) / 2),
        _upper,
    ),
    Erratum(
        "001.eq34",
        "001 eq. 34 to 36",
        "balls B_0..B_m; z_i with c_j; |B|Var(B)",
        "m balls; one index; |B|(Var(B) + |c − μ|²), so Var only at the mean",
        "T33",
        "two balls off their codes",
        against(
            (lambda number: (0, number + 1), lambda ball, _: len(ball) * _variance(ball)),
            (
                lambda number: (1, number + 1),
                lambda ball, entry: len(ball) * (_variance(ball) + (_mean(ball) - entry) ** 2),
            ),
        ),
        _balls,
    ),
    Erratum(
        "001.eq40",
        "001 eq. 40, A.9",
        "statistics of z_q, elsewhere of C, as if they were one",
        "two estimators, whose means differ by Σ(n_j/B − 1/K)c_j: say which",
        "T26",
        "three codes with free counts: mean of z_q less mean of C; latents 0, 1 and C = {0, 10, 20}",
        against(
            lambda codes, _: 0 * codes[0],
            lambda codes, counts: sum(
                (count / sum(counts) - sp.Rational(1, len(codes))) * entry
                for count, entry in zip(counts, codes, strict=True)
            ),
        ),
        _two_statistics,
    ),
    Erratum(
        "001.eq43",
        "001 eq. 43",
        "+σ_ema(z_e)",
        "+μ_ema(z_e)",
        "T26",
        "the moved codes have the mean of the latents",
        against(std_e, mean_e),
        _shift,
    ),
    Erratum(
        "001.eq44",
        "001 eq. 44 and 45",
        "c_mean = σ/σ, c_std = σ_e − …",
        "c_std = σ_e/σ_q, c_mean = μ_e − (σ_e/σ_q)μ_q",
        "T26",
        "c_std·c + c_mean is the map of eq. 43",
        against((std_e / std_q, std_e - std_e / std_q * mean_q), (mean_e - std_e / std_q * mean_q, std_e / std_q)),
        _affine,
    ),
    Erratum(
        "001.table10",
        "001 Table 10, §5.4",
        "52.54 is +5.58; eight steps are 5.51 above one",
        "+5.60; 5.49",
        "",
        "differences to the baseline 46.94 and from 52.54 to 58.03",
        against((Decimal("5.58"), Decimal("5.51")), (Decimal("5.60"), Decimal("5.49"))),
        _table10,
    ),
)
