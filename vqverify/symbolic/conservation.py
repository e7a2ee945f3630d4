"""T19, T20 and T22: what moving averages conserve, what they leave alone, and how they shard."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.ema import COUNT, SUM, K, N, S, gamma, m, n
from vqverify.symbolic.exact import round_to, same
from vqverify.symbolic.notation import unit

B, start = sp.symbols("B N_0", positive=True)
time: Any = sp.Symbol("t", integer=True, nonnegative=True)
k: Any = sp.Symbol("k", integer=True, positive=True)
batch = sp.Function("Z")  # Σ_b z_b of step k, one component
code, initial, scale, shift = sp.symbols("c m_0 a t_0", real=True)


def _counts(f: Stated) -> bool:
    # induction: Σn = B in every step
    closed = f["ΣN_t"]
    following = COUNT.subs({N: closed, n: B}, simultaneous=True)
    return closed.subs(time, 0) == start and same(sp.powsimp(sp.expand(following - closed.subs(time, time + 1))), 0)


def _sums(f: Stated) -> bool:
    # induction in t with free batches: the sum to t + 1 is γ times the sum to t, and its last term
    now, following = f["Σm_t"], f["Σm_t"].subs(time, time + 1)
    (past,), (longer,) = now.atoms(sp.Sum), following.atoms(sp.Sum)
    if past.limits != ((k, 1, time),) or longer.limits != ((k, 1, time + 1),):
        return False
    if not same(sp.powsimp(sp.expand(longer.function / past.function)), gamma):
        return False
    held = sp.Symbol("past")
    stepped = SUM.subs({m: now.subs(past, held), S: batch(time + 1)}, simultaneous=True)
    split = following.subs(longer, gamma * held + longer.function.subs(k, time + 1))
    return same(sp.powsimp(sp.expand(split - stepped)), 0) and same(now.subs(time, 0).doit(), initial)


CONSERVATION = Derivation(
    id="update.conserves",
    theorem="T19",
    title="Conservation",
    statement="ΣN_t = γ^t ΣN₀ + (1 − γ^t)B; Σm_t = γ^t Σm₀ + (1 − γ)Σ_k γ^{t−k} Σ_b z_b^{(k)}.",
    latex=(
        r"\sum N_t=\gamma^t\sum N_0+(1-\gamma^t)B,\qquad \sum m_t=\gamma^t\sum m_0+(1-\gamma)\sum_{k=1}^t\gamma^{t-k}"
        r"\sum_b z_b^{(k)}"
    ),
    hypotheses=("every latent is assigned to exactly one code", "batches of size B"),
    source="002 eq. 3–4",
    stated={
        "ΣN_t": gamma**time * start + (1 - gamma**time) * B,
        "Σm_t": gamma**time * initial + (1 - gamma) * sp.Sum(gamma ** (time - k) * batch(k), (k, 1, time)),
    },
    tolerances={"relative to Σ|·|": (K + B + 3 * time) * unit},
    steps=(
        algebra("counts: induction in t from the recursion", _counts),
        algebra("sums: induction in t from the recursion, free batches", _sums),
    ),
    catches="latents dropped or counted twice, masked ones counted",
)


def _stays(f: Stated) -> bool:
    after = SUM.subs({m: N * code, S: 0}) / COUNT.subs(n, 0)
    return same(after, f["c' of an unused code"])


def _normal_steps(f: Stated) -> bool:
    # γ^t N₀ stays above the least normal number 2^-126 exactly up to the stated t (N₀ = 1), in integers
    for decay, stated in zip((Fraction(99, 100), Fraction(4, 5)), f["normal steps, γ = .99, .8"], strict=True):
        last = int(stated)
        if not decay**last >= Fraction(1, 2**126) > decay ** (last + 1):
            return False
    return True


def _stalls(f: Stated) -> bool:
    # integers times the least subnormal, multiplied by the float32 nearest γ, rounded to even
    for decay, stated in zip((Fraction(99, 100), Fraction(9, 10)), f["stalls at, γ = .99, .9"], strict=True):
        nearest = round_to(decay, 24)
        units = 5000
        while round(units * nearest) != units:
            units = round(units * nearest)
        if units != stated or units != int(1 / (2 * (1 - nearest))):
            return False
    return True


UNUSED = Derivation(
    id="update.unused",
    theorem="T20",
    title="An unused code stays",
    statement=(
        "n = 0 ⇒ c' = c; exact in R, drift ≤ (2t + 1)u|c| in floats while m, N are normal: t < (126 ln 2 + ln N₀)/(−ln γ) "
        "(f32: up to t = 8689 at γ = .99, 391 at .8). Then N and |m| stall at ⌊1/(2(1 − fl γ))⌋ least subnormals "
        "(50 at .99, 4 at .9)."
    ),
    latex=r"n_i=0 \Rightarrow c_i'=c_i;\qquad t<\frac{126\ln2+\ln N_0}{-\ln\gamma};"
    r"\qquad \left\lfloor\frac1{2(1-\mathrm{fl}\,\gamma)}\right\rfloor",
    hypotheses=("unsmoothed EMA", "m = Nc"),
    source="theory page; 002 eq. 5",
    stated={
        "c' of an unused code": code,
        "normal steps, γ = .99, .8": sp.Tuple(8689, 391),
        "stalls at, γ = .99, .9": sp.Tuple(50, 4),
    },
    bounds=("normal steps, γ = .99, .8",),
    tolerances={"drift, relative": (2 * time + 1) * unit},
    steps=(
        algebra("m and N are both multiplied by γ", _stays),
        lemma("two roundings a step and one in the quotient: drift ≤ (2t + 1)u|c|"),
        certificate("the number of normal steps, in integer arithmetic", _normal_steps),
        certificate("the recursion in subnormal units, rounded exactly, stops where stated", _stalls),
    ),
    catches="decaying dead codes",
)


def _permutes(f: Stated) -> bool:
    # the update of a code is a function of its own (N, m, n, S): no other code's symbol enters
    return (f["m'"] / f["N'"]).free_symbols == {N, m, n, S, gamma}


def _affine(f: Stated) -> bool:
    # z ↦ aQz + t on both, in the plane: m ↦ aQm + tN, S ↦ aQS + tn
    cosine, sine = sp.Rational(3, 5), sp.Rational(4, 5)
    Q = sp.Matrix([[cosine, -sine], [sine, cosine]])
    sums, batch_sums, move = (sp.Matrix(sp.symbols(f"{name}1:3")) for name in "mSt")

    def update(accumulated: Any, added: Any) -> Any:
        return sp.Matrix(
            [
                f["m'"].subs({m: one, S: other}, simultaneous=True) / f["N'"]
                for one, other in zip(accumulated, added, strict=True)
            ]
        )

    moved = update(scale * Q * sums + move * N, scale * Q * batch_sums + move * n)
    return same(list(moved), list(scale * Q * update(sums, batch_sums) + move))


def _latents(f: Stated) -> bool:
    # n and S are sums over the latents of a code: two exchanged change nothing, with any third part of the sum
    first, second, others = sp.symbols("z_1 z_2 others")
    sums = [
        f["all-reduce of S"].subs({sp.Symbol("S_1"): one, sp.Symbol("S_2"): other}) + others
        for one, other in ((first, second), (second, first))
    ]
    return same(*sums)


def _own_draws(f: Stated) -> bool:
    # two devices whose copies of a code differ, as after replacements drawn apart, on the same (n, S)
    one, other = sp.symbols("c_a c_b", real=True)
    after = [(f["m'"] / f["N'"]).subs(m, N * copy) for copy in (one, other)]
    left = f["difference after a step"].subs(sp.Symbol("delta"), one - other)
    shrinks = sp.cancel(1 - left / (one - other))
    return same(after[0] - after[1], left) and shrinks.subs(gamma, sp.Rational(1, 2)).is_positive is True


def _shards(f: Stated) -> bool:
    n1, n2, S1, S2 = sp.symbols("n1 n2 S1 S2", positive=True)

    def update(counts: Any, sums: Any) -> Any:
        return (f["m'"] / f["N'"]).subs({n: counts, S: sums}, simultaneous=True)

    names = dict(zip(sp.symbols("n_1 n_2 S_1 S_2"), (n1, n2, S1, S2), strict=True))
    one_device = update(n1 + n2, S1 + S2)
    reduced = update(f["all-reduce of n"].subs(names), f["all-reduce of S"].subs(names))
    example = {n1: 1, n2: 2, S1: 3, S2: -1, N: 1, m: 2, gamma: sp.Rational(1, 2)}
    wrong = ((update(n1, S1) + update(n2, S2)) / 2, update((n1 + n2) / 2, (S1 + S2) / 2))
    return same(one_device, reduced) and all(value.subs(example) != one_device.subs(example) for value in wrong)


def _gradient_mean(f: Stated) -> bool:
    # mean of shard means against the batch mean: equal for all sums iff the shards are equal
    B1, B2, s1, s2 = sp.symbols("B1 B2 s1 s2", positive=True)
    difference = sp.expand((s1 / B1 + s2 / B2) / 2 - (s1 + s2) / (B1 + B2))
    solution = sp.solve(sp.together(difference.coeff(s1)), B1)
    return solution == [f["shard size for the mean"].subs(sp.Symbol("B_2"), B2)] and same(difference.subs(B1, B2), 0)


SHARDING = Derivation(
    id="update.sharding",
    theorem="T22",
    title="Symmetry and sharding",
    statement=(
        "The update commutes with permutations of codes and latents and, unsmoothed, with z ↦ aQz + t on both. An "
        "all-reduce sum of (n, S) equals one device; averaging codebooks, or (n, S) while N₀ stays, does not. Copies "
        "that differ, as after replacements drawn apart, differ by γN/N' of it after a step: replacements need one "
        "shared draw. The mean over shards of mean gradients is the batch mean iff the shards are equal."
    ),
    latex=r"(n,S)=\sum_s(n_s,S_s);\qquad c'(aQz+t)=aQ\,c'(z)+t;\qquad \tfrac12\left(\bar g_1+\bar g_2\right)=\bar g \iff B_1=B_2",
    hypotheses=("unsmoothed EMA (for z ↦ aQz + t)",),
    source="theory page",
    stated={
        "N'": COUNT,
        "m'": SUM,
        "all-reduce of n": sp.Symbol("n_1") + sp.Symbol("n_2"),
        "all-reduce of S": sp.Symbol("S_1") + sp.Symbol("S_2"),
        "difference after a step": gamma * N / COUNT * sp.Symbol("delta"),
        "shard size for the mean": sp.Symbol("B_2"),
    },
    tolerances={"relative to Σ|z|": (B + 6) * unit},
    steps=(
        algebra("the update of a code reads nothing of the others", _permutes),
        algebra("two latents of a code exchanged", _latents),
        algebra("a similarity of the plane, free entries: m ↦ aQm + tN", _affine),
        certificate("sum equals one device; an exact example in which both averages do not", _shards),
        algebra("copies of a code that differ stay apart: by γN/N' of the difference, on the same (n, S)", _own_draws),
        algebra("the mean of means", _gradient_mean),
    ),
    catches="unsynchronised EMA, mean reduction",
)

DERIVATIONS = (CONSERVATION, UNUSED, SHARDING)
