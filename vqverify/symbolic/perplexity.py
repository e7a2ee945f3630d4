"""T31 and T32: how many codes are in use, and how many can be expected."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate
from vqverify.symbolic.exact import nonnegative, same, zero
from vqverify.symbolic.notation import unit

K, M = sp.symbols("K M", integer=True, positive=True)
eps, t = sp.symbols("epsilon t", positive=True)
entropy: Any = sp.Symbol("H", real=True)  # in nats
p: Any = sp.Symbol("p", positive=True)
batch, height, width, pools = sp.symbols("b h w n", positive=True)


def _bases(f: Stated) -> bool:
    # H in bits is H / ln 2, and 2^(H/ln 2) = e^H
    return sp.simplify(f["perplexity"] - sp.exp(sp.log(2) * (entropy / sp.log(2)))) == 0


def _tangent(f: Stated) -> bool:
    # t − 1 − ln t has its only stationary point at 1, where it is 0, and second derivative 1/t²
    excess = f["ln t at most"] - sp.log(t)
    stationary = sp.solve(sp.diff(excess, t), t)
    return stationary == [1] and excess.subs(t, 1) == 0 and nonnegative(sp.diff(excess, t, 2), 1 / t**2)


def _largest(f: Stated) -> bool:
    # H − ln K = Σ p ln(1/(Kp)) <= Σ p (1/(Kp) − 1) = K·(1/K) − 1 = 0, term by term by ln t <= t − 1
    term = sp.expand(p * f["ln t at most"].subs(t, 1 / (K * p)))  # summed over K codes with Σp = 1
    uniform = f["perplexity"].subs(entropy, -K * (1 / K) * sp.log(1 / K))
    total = term.subs(p, 0) * K + sp.diff(term, p)  # K·constant + Σp·slope
    return zero(total) and zero(sp.simplify(uniform - f["perplexity at most"]))


def _least(f: Stated) -> bool:
    # one code: H = 0; and −p ln p >= 0 for p = 1/(1 + s)
    s = sp.Symbol("s", nonnegative=True)
    term = sp.expand_log(-(1 / (1 + s)) * sp.log(1 / (1 + s)), force=True)
    return (term * (1 + s)).subs(
        s, sp.exp(sp.Symbol("r", nonnegative=True)) - 1
    ).simplify().is_nonnegative is True and f["perplexity"].subs(entropy, 0) == f["perplexity at least"]


def _pool(f: Stated) -> bool:
    # two ranks, each with one distinct code: mean of perplexities against perplexity of the pool
    half = sp.Rational(1, 2)
    pooled = f["perplexity"].subs(entropy, -2 * half * sp.log(half))
    mean = (f["perplexity"].subs(entropy, 0) + f["perplexity"].subs(entropy, 0)) / 2
    return same((mean, pooled), f["two ranks: mean, pooled"])


def _smoothed(f: Stated) -> bool:
    # Σ p ln((p + ε)/p) <= Σ p ((p + ε)/p − 1) = Kε
    term = sp.cancel(p * f["ln t at most"].subs(t, (p + eps) / p))
    return same(K * term, f["loss of H by ε"])


def _wrong_base(f: Stated) -> bool:
    read = 2 ** sp.log(16)
    return same(f["2^(H nats), K = 16"], sp.Rational(68, 10)) and bool(
        sp.Abs(read - f["2^(H nats), K = 16"]) < sp.Rational(1, 20)
    )


PERPLEXITY = Derivation(
    id="metrics.perplexity",
    theorem="T31",
    title="Perplexity",
    statement=(
        "e^H (H in nats) = 2^{H₂}: 1 ≤ perplexity ≤ K, K iff uniform. Pool counts, then exponentiate: two ranks with one "
        "distinct code each: mean 1, true 2. log(p + ε) lowers H by ≤ Kε. 2^{H in nats} for 16 uniform codes reads 6.8."
    ),
    latex=r"1\le e^{H}=2^{H_2}\le K,\qquad H(p)-\tilde H_\varepsilon(p)\le K\varepsilon",
    hypotheses=("p a distribution over the codes (over the used codes, for the bound #used)",),
    source="001 §5.1",
    stated={
        "perplexity": sp.exp(entropy),
        "ln t at most": t - 1,
        "perplexity at most": K,
        "perplexity at least": sp.S.One,
        "two ranks: mean, pooled": sp.Tuple(1, 2),
        "loss of H by ε": K * eps,
        "2^(H nats), K = 16": sp.Rational(34, 5),
    },
    bounds=("ln t at most", "perplexity at most", "perplexity at least", "loss of H by ε"),
    tolerances={"relative to the perplexity": (K + 8) * unit * sp.Max(1, sp.log(K))},
    steps=(
        algebra("bits and nats", _bases),
        certificate("ln t ≤ t − 1: convex, with its minimum 0 at 1", _tangent),
        certificate("H ≤ ln K by it, with equality for the uniform distribution", _largest),
        certificate("H ≥ 0, with equality for one code", _least),
        algebra("pooling", _pool),
        certificate("the effect of ε, by the same inequality", _smoothed),
        certificate("the wrong base for 16 codes", _wrong_base),
    ),
    catches="base mismatch, averaging perplexities",
)


def _positions(f: Stated) -> bool:
    # each 2×2 pooling halves both axes
    side_h, side_w = height, width
    counts = []
    for n in range(4):
        counts.append(same(batch * side_h * side_w, f["M"].subs(pools, n)))
        side_h, side_w = side_h / 2, side_w / 2
    return all(counts)


def _tail(f: Stated) -> bool:
    # for M = 4 draws and K = 3, counted; and the formula for k = 1
    from itertools import product

    total = 3**4
    for threshold in (1, 2, 3):
        hits = sum(draws.count(0) >= threshold for draws in product(range(3), repeat=4))
        stated = f["P(count ≥ k)"].subs({M: 4, K: 3, sp.Symbol("k"): threshold}).doit()
        if not same(sp.Rational(hits, total), stated):
            return False
    return True


def _draws(f: Stated) -> bool:
    # induction in M: one more draw hits the code with probability 1/K; and is new with 1 − u/K, by linearity
    (fewer,) = f["P(count ≥ k)"].atoms(sp.Sum)
    chance = fewer.function
    more = chance.subs(M, M + 1) - (1 - 1 / K) * chance - chance.subs(_i, _i - 1) / K
    used = f["E #used"]
    new = used.subs(M, M + 1) - (used + 1 - used / K)
    ratio = sp.gammasimp(sp.expand_func((more / chance).rewrite(sp.gamma)))
    return zero(sp.powsimp(sp.simplify(ratio))) and zero(sp.powsimp(sp.expand(new))) and used.subs(M, 0) == 0


def _used(f: Stated) -> bool:
    from itertools import product

    for codes, draws in ((2, 3), (3, 3), (3, 4)):
        mean = sp.Rational(sum(len(set(one)) for one in product(range(codes), repeat=draws)), codes**draws)
        if not same(mean, f["E #used"].subs({K: codes, M: draws})):
            return False
    return True


def _numbers(f: Stated) -> bool:
    names = {batch: 2, height: 32, width: 32, pools: 3}
    right = f["M"].subs(names)
    wrong = (batch * height * width / 2**pools).subs(names)

    def chance(size: Any) -> Any:
        return f["P(count ≥ k)"].subs({M: size, K: 64, sp.Symbol("k"): 1}).doit()

    rounded = tuple(sp.Rational(round(chance(size) * 1000), 1000) for size in (right, wrong))
    return right == f["M, b = 2, 32², n = 3"] and rounded == tuple(f["P with 4^n, 2^n"])


_i = sp.Symbol("i", integer=True, nonnegative=True)

_fewer: Any = sp.Sum(sp.binomial(M, _i) * (1 / K) ** _i * (1 - 1 / K) ** (M - _i), (_i, 0, sp.Symbol("k") - 1))
ACTIVATION = Derivation(
    id="metrics.activation",
    theorem="T32",
    title="Activation of codes",
    statement=(
        "M = bhw/4^n positions after n 2×2 poolings; uniform independent use: P(count ≥ k) = 1 − F_{Bin(M,1/K)}(k − 1), "
        "E #used = K(1 − (1 − 1/K)^M). b = 2, 32², n = 3, K = 64: M = 32, P = 0.396; with 2^n 0.982."
    ),
    latex=r"M=\frac{bhw}{4^n},\qquad \mathbb E\,\#\text{used}=K\left(1-\left(1-\tfrac1K\right)^M\right)",
    hypotheses=("codes chosen independently and uniformly",),
    source="001 eq. 29",
    stated={
        "M": batch * height * width / 4**pools,
        "P(count ≥ k)": 1 - _fewer,
        "E #used": K * (1 - (1 - 1 / K) ** M),
        "M, b = 2, 32², n = 3": sp.Integer(32),
        "P with 4^n, 2^n": sp.Tuple(sp.Rational(396, 1000), sp.Rational(982, 1000)),
    },
    steps=(
        algebra("halving both axes n times", _positions),
        algebra("the binomial tail, against a count of all 3⁴ draws", _tail),
        algebra("the expected number, against a count of all draws for three sizes", _used),
        algebra("both for every M and K, by induction in M", _draws),
        certificate("the paper's setting: 0.396, not 0.982", _numbers),
    ),
    catches="pooling counted once per axis, M for B",
)

DERIVATIONS = (PERPLEXITY, ACTIVATION)
