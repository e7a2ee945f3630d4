"""T17, T18 and T21: moving averages of counts and sums as gradient steps, their start, and their smoothing."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate
from vqverify.symbolic.exact import nonnegative, same
from vqverify.symbolic.notation import unit

gamma: Any = sp.Symbol("gamma", positive=True)  # decay, the weight of the past
N: Any = sp.Symbol("N", positive=True)  # accumulated count of a code
m: Any = sp.Symbol("m", real=True)  # accumulated sum, one component
n: Any = sp.Symbol("n", positive=True)  # latents of this batch assigned to the code
S: Any = sp.Symbol("S", real=True)  # their sum, one component
code: Any = sp.Symbol("c", real=True)  # the code before the step, one component
eps: Any = sp.Symbol("epsilon", positive=True)
total: Any = sp.Symbol("T", positive=True)  # sum of N over the codes
K: Any = sp.Symbol("K", integer=True, positive=True)
rate: Any = sp.Symbol("eta", positive=True)
B, dim = sp.symbols("B d", positive=True)

COUNT = gamma * N + (1 - gamma) * n
SUM = gamma * m + (1 - gamma) * S


def _recursion(f: Stated) -> bool:
    # an exponential average: weight gamma^k for the batch k steps back; one step from (N, m)
    past, now = sp.symbols("past now")
    weights = [
        sp.diff(f[name].subs({N: past, n: now, m: past, S: now}), symbol)
        for name in ("N'", "m'")
        for symbol in (past, now)
    ]
    return same(weights, (gamma, 1 - gamma) * 2) and all(
        f[name].subs({N: 0, n: 0, m: 0, S: 0}) == 0 for name in ("N'", "m'")
    )


def _is_quotient(f: Stated) -> bool:
    return same(f["m'"].subs(m, N * code) / f["N'"], f["c'"])


def _is_sgd(f: Stated) -> bool:
    # loss Σ½|z − q|² over the n latents of a code: gradient nc − S, as Σ½(z − c)² = ½Σz² − cS + ½nc²
    loss = -code * S + n * code**2 / 2
    moved = code - f["rate, summed loss"] * sp.diff(loss, code)
    per_mean = code - f["rate, mean over B"] * sp.diff(loss / B, code)
    per_entry = code - f["rate, mean over Bd, no ½"] * sp.diff(2 * loss / (B * dim), code)
    names = {sp.Symbol("N'"): COUNT}
    return all(same(step.subs(names), f["m'"].subs(m, N * code) / f["N'"]) for step in (moved, per_mean, per_entry))


def _steady(f: Stated) -> bool:
    weight = sp.diff(f["c'"].subs(n, N), S) * N
    return same(weight, f["step at N = n"])


def _memoryless(f: Stated) -> bool:
    # c' = (1 − eta)c + eta z̄, against SGD at beta = 1 on a summed loss with n latents
    loss = -code * S + n * code**2 / 2
    after = code - rate * sp.diff(loss, code)
    error = (after - S / n) / (code - S / n)
    averaged = (1 - rate) * code + rate * S / n
    factor = f["factor of the summed loss"]
    edges = (sp.solve(factor, n), sp.solve(factor + 1, n))  # overshoots past 0, diverges past −1
    return (
        same(error, factor)
        and same(after.subs(n, 1), averaged.subs(n, 1))
        and tuple(edge[0] * rate for edge in edges) == tuple(f["ηn where it overshoots, diverges"])
    )


STEP = Derivation(
    id="update.ema_step",
    theorem="T17",
    title="EMA is a gradient step",
    statement=(
        "N' = γN + (1 − γ)n, m' = γm + (1 − γ)S, c' = m'/N', m = Nc: c' = c + (1 − γ)(n/N')(z̄ − c), that is SGD on "
        "Σ½|z − q|² with rate (1 − γ)/N' per code; at N = n the step is 1 − γ. A summed loss with n latents multiplies "
        "the error by 1 − ηn."
    ),
    latex=(
        r"N'=\gamma N+(1-\gamma)n,\quad m'=\gamma m+(1-\gamma)S,\quad c'=\frac{m'}{N'} = c+(1-\gamma)\frac{n}{N'}(\bar z-c)"
    ),
    hypotheses=("m = Nc", "n ≥ 1"),
    source="001 eq. 11, A.2; 002 eq. 3–5",
    stated={
        "N'": COUNT,
        "m'": SUM,
        "c'": code + (1 - gamma) * n / COUNT * (S / n - code),
        "rate, summed loss": (1 - gamma) / sp.Symbol("N'"),
        "rate, mean over B": B * (1 - gamma) / sp.Symbol("N'"),
        "rate, mean over Bd, no ½": B * dim * (1 - gamma) / (2 * sp.Symbol("N'")),
        "step at N = n": 1 - gamma,
        "factor of the summed loss": 1 - rate * n,
        "ηn where it overshoots, diverges": sp.Tuple(1, 2),
    },
    tolerances={"relative to max(|c|, max|z|)": (n + 8) * unit},
    steps=(
        algebra("both are averages with weights γ and 1 − γ", _recursion),
        algebra("substitute $m = Nc$", _is_quotient),
        algebra("a gradient step on the summed, the mean and the per-entry loss gives the same code", _is_sgd),
        algebra("at N = n the weight of z̄ is 1 − γ", _steady),
        algebra("the memoryless form is SGD for n = 1; n latents give the factor 1 − ηn", _memoryless),
    ),
    catches="decay swapped, sum for mean, m without N",
)


def _first_step(f: Stated) -> bool:
    start = {N: 0, m: code}
    return same((SUM / COUNT).subs(start), f["c₁ from N₀ = 0"])


def _unused(f: Stated) -> bool:
    start = {N: 0, m: code, n: 0, S: 0}
    smoothed = SUM.subs(start) / LAPLACE.stated["N̂"].subs(N, COUNT.subs(start))
    return COUNT.subs(start) == 0 and same(sp.limit(smoothed, total, sp.oo), f["unused, smoothed"])


def _necessary(f: Stated) -> bool:
    # from m₀ = N₀c₀ + r the unused code moves off c₀ unless r = 0
    off = sp.Symbol("r", real=True)
    after = (gamma * (f["m₀"] + off)) / (gamma * N)
    return sp.solve(after - code, off) == [0]


INITIAL = Derivation(
    id="update.initial_state",
    theorem="T18",
    title="Initial state",
    statement=(
        "m₀ = N₀c₀ is necessary: N₀ = 0, m₀ = c₀ gives c₁ = γc₀/((1 − γ)n) + z̄, and for unused codes division by 0 or, "
        "smoothed, γc₀/ε (T ≫ Kε)."
    ),
    latex=r"m_0=N_0c_0;\qquad N_0=0,\ m_0=c_0 \Rightarrow c_1=\frac{\gamma c_0}{(1-\gamma)n}+\bar z",
    hypotheses=("accumulators N, m",),
    source="002 eq. 5",
    stated={
        "m₀": N * code,
        "c₁ from N₀ = 0": gamma * code / ((1 - gamma) * n) + S / n,
        "unused, smoothed": gamma * code / eps,
    },
    steps=(
        algebra("an unused code stays where it was only from m₀ = N₀c₀", _necessary),
        algebra("substitute N₀ = 0, m₀ = c₀ in a used code", _first_step),
        algebra("an unused one: N' = 0; smoothed, the limit for large T", _unused),
    ),
    catches="zero counts beside a copied codebook",
)


def _keeps_total(f: Stated) -> bool:
    # Σ(N + ε) = T + Kε: the smoothed counts are linear in N, so their sum is that of the parts
    smoothed = sp.expand(f["N̂"])
    slope = sp.diff(smoothed, N)
    return same(sp.diff(slope, N), 0) and same(slope * total + smoothed.subs(N, 0) * K, total)


def _ratio(f: Stated) -> bool:
    return same(N / f["N̂"], f["ρ"])


def _fixed_point(f: Stated) -> bool:
    return sp.solve(f["ρ"] - 1, N) == [f["ρ = 1 at N"]] and sp.limit(f["ρ"], N, 0) == 0


def _largest(f: Stated) -> bool:
    # ρ grows with N, and N <= T
    growth = sp.diff(f["ρ"], N)
    return (
        nonnegative(growth, eps * (total + K * eps) / (total * (N + eps) ** 2))
        and same(f["ρ"].subs(N, total), f["ρ at most"])
        and sp.limit(f["ρ at most"], eps, sp.oo) == f["sup of ρ"]
    )


def _displacement(f: Stated) -> bool:
    return same(m / f["N̂"] - m / N, f["displacement"].subs(sp.Symbol("rho"), f["ρ"]))


LAPLACE = Derivation(
    id="update.laplace",
    theorem="T21",
    title="Laplace smoothing",
    statement=(
        "N̂ = (N + ε)T/(T + Kε), T = ΣN: ΣN̂ = T; c' = ρm/N with ρ = N(T + Kε)/(T(N + ε)): ρ = 1 iff N = T/K, ρ → 0 as "
        "N → 0, ρ ≤ (T + Kε)/(T + ε), up to K. T17 and T20 fail by exactly |ρ − 1||m/N|."
    ),
    latex=(
        r"\hat N=\frac{(N+\varepsilon)T}{T+K\varepsilon},\quad \sum\hat N=T,\qquad c'=\rho\frac mN,\quad"
        r" \rho=\frac{N(T+K\varepsilon)}{T(N+\varepsilon)} \le \frac{T+K\varepsilon}{T+\varepsilon}"
    ),
    hypotheses=("ε > 0", "T = ΣN > 0"),
    source="000 and 002 by their code",
    stated={
        "N̂": (N + eps) * total / (total + K * eps),
        "ρ": N * (total + K * eps) / (total * (N + eps)),
        "ρ = 1 at N": total / K,
        "ρ at most": (total + K * eps) / (total + eps),
        "sup of ρ": K,
        "displacement": (sp.Symbol("rho") - 1) * m / N,
    },
    bounds=("ρ at most",),
    tolerances={"relative to |c'|": (K + 8) * unit},
    steps=(
        algebra("ΣN̂ = T, as Σ(N + ε) = T + Kε", _keeps_total),
        algebra("ρ = N/N̂", _ratio),
        algebra("ρ = 1 at N = T/K alone; ρ → 0 with N", _fixed_point),
        certificate("ρ grows with N ≤ T; the largest value goes to K", _largest),
        algebra("the displacement of a code", _displacement),
    ),
    catches="silent shrinkage",
)

DERIVATIONS = (STEP, INITIAL, LAPLACE)
