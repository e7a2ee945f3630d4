"""T25 and T26: codes reparametrized by a shared affine map, learned or from moments."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate
from vqverify.symbolic.exact import nonnegative, same, zero
from vqverify.symbolic.notation import unit

a, S, b, eta = sp.symbols("a S b eta", real=True)
one, own, sum_g, sum_gx = sp.symbols("x G sum_G sum_Gx", real=True)  # one component of code j; sums over all
others_g, others_gx = sp.symbols("others_G others_Gx", real=True)  # ΣG_i and ΣG_ix_i over the other codes
SUMS = {sum_g: own + others_g, sum_gx: own * one + others_gx}
scale_e, scale_q = sp.symbols("sigma_e sigma_q", positive=True)
B, K = sp.symbols("B K", positive=True)
mean_e, mean_q, code = sp.symbols("mu_e mu_q c", real=True)

CODE = (1 + a * S) * one + a * b  # eq. 15 with the scale 1 + aS and the shift ab


def _loss() -> Any:
    """Σ_i G_i c_i, G held: code j, and the sums over all others as free symbols, for every number of codes."""
    scale, offset = sp.diff(CODE, one), CODE.subs(one, 0)  # Σ G_i(αx_i + β) = αΣG_ix_i + βΣG_i
    return own * CODE + scale * others_gx + offset * others_g


def _chain(f: Stated) -> bool:
    derived = (sp.diff(_loss(), one), sp.diff(_loss(), S), sp.diff(_loss(), b))
    return same(derived, (f["∂x"], f["∂S"].subs(SUMS), f["∂b"].subs(SUMS))) and same(CODE, f["c"])


def _moves(f: Stated) -> bool:
    # one step of SGD on x, S, b; the move of a code to first order in eta
    after = {name: name - eta * sp.diff(_loss(), name) for name in (one, S, b)}
    rate = sp.diff(sp.expand(CODE.subs(after, simultaneous=True)), eta).subs(eta, 0)
    return same(eta * rate, f["Δc"].subs(SUMS))


def _unused(f: Stated) -> bool:
    # G_j = 0: ∂x_j = 0, and yet the code moves with the others
    moved = f["Δc"].subs(SUMS).subs(own, 0)
    return (
        zero(f["∂x"].subs(own, 0))
        and not zero(moved)
        and zero(moved.subs({others_g: 0, others_gx: 0}))
        and same(sp.Poly(moved, a).monoms()[0][0], f["power of a in the affine part"])
    )


LEARNED = Derivation(
    id="update.affine",
    theorem="T25",
    title="Affine reparametrization",
    statement=(
        "c_j = (1 + aS)⊙x_j + ab, G_j = ∂L/∂c_j: ∂x_j = (1 + aS)⊙G_j, ∂S = aΣG_i⊙x_i, ∂b = aΣG_i. One SGD step: "
        "Δc_j = −η[(1 + aS)²⊙G_j + a²ΣG_i + a²x_j⊙Σ(G_i⊙x_i)] + O(η²): unused codes move; the affine rate is a²η."
    ),
    latex=(
        r"\Delta c_j = -\eta\left[(1+aS)^2\odot G_j + a^2\sum_iG_i + a^2x_j\odot\sum_i(G_i\odot x_i)\right]+O(\eta^2)"
    ),
    hypotheses=("S and b shared by all codes", "componentwise"),
    source="001 eq. 15",
    stated={
        "c": (1 + a * S) * one + a * b,
        "∂x": (1 + a * S) * own,
        "∂S": a * sum_gx,
        "∂b": a * sum_g,
        "Δc": -eta * ((1 + a * S) ** 2 * own + a**2 * sum_g + a**2 * one * sum_gx),
        "power of a in the affine part": sp.Integer(2),
    },
    tolerances={"relative to aΣ|G|(1 + |x|)": (K + 4) * unit},
    steps=(
        algebra("chain rule for one code, the sums over all others free: every number of codes", _chain),
        algebra("substitute the step, differentiate in η at 0", _moves),
        certificate("an unused code has ∂x = 0 and moves by order a²", _unused),
    ),
    catches="an affine map per code, a counted once",
)


def _mapped(value: Any) -> Any:
    return scale_e / scale_q * (value - mean_q) + mean_e  # centre, then scale to the latents' moments


def _split(f: Stated) -> bool:
    names = {sp.Symbol("c_std"): f["c_std"], sp.Symbol("c_mean"): f["c_mean"]}
    return same(_mapped(code), (sp.Symbol("c_std") * code + sp.Symbol("c_mean")).subs(names))


def _matches(f: Stated) -> bool:
    # mean and standard deviation of αc + β are α mean + β and |α| std
    moved_mean = f["c_std"] * mean_q + f["c_mean"]
    moved_scale = f["c_std"] * scale_q
    again = {mean_q: moved_mean, scale_q: moved_scale}
    identity = sp.Tuple(f["c_std"].subs(again, simultaneous=True), f["c_mean"].subs(again, simultaneous=True))
    return same((moved_mean, moved_scale), (mean_e, scale_e)) and same(identity, (1, 0))


def _between(f: Stated) -> bool:
    # law of total variance: batches with means ±1 and no spread
    within = sum((0, 0)) / sp.Integer(2)
    means = (sp.Integer(1), sp.Integer(-1))
    true = within + sum(value**2 for value in means) / 2 - (sum(means) / 2) ** 2
    return same((within, true), f["EMA of batch variances, true variance"])


def _divergence(f: Stated) -> bool:
    """KL(N(0, I) ‖ N(0, s²Σ)) for Σ = [[1, .9], [.9, 1]]: matched moments are not the minimum."""
    covariance = sp.Matrix([[1, sp.Rational(9, 10)], [sp.Rational(9, 10), 1]])
    square = sp.Symbol("s2", positive=True)
    kl = (covariance.inv().trace() / square - 2 + sp.log(square**2 * covariance.det())) / 2
    (best,) = sp.solve(sp.diff(kl, square), square)
    return (
        same(best, f["best s²"])
        and zero(kl.subs(square, 1) - f["KL at matched moments"])
        and zero(sp.expand_log(sp.logcombine(kl.subs(square, best) - f["KL at best s²"], force=True), force=True))
        and bool(f["KL at matched moments"] > f["KL at best s²"])
    )


def _diagonal(f: Stated) -> bool:
    # diagonal covariance: the KL separates, each term ½[r − 1 − ln r] with r = σ_e²/(s²σ_q²), least at r = 1
    r = sp.Symbol("r", positive=True)
    term = (r - 1 - sp.log(r)) / 2
    slope = sp.together(sp.diff(term, r))
    (where,) = sp.solve(slope, r)
    return same(where, f["diagonal: best σ_e²/(s²σ_q²)"]) and nonnegative(sp.diff(term, r, 2), 1 / (2 * r**2))


MOMENTS = Derivation(
    id="update.affine_moments",
    theorem="T26",
    title="Affine map by moments",
    statement=(
        "c ↦ (σ_e/σ_q)(c − μ_q) + μ_e: c_std = σ_e/σ_q, c_mean = μ_e − (σ_e/σ_q)μ_q; matched statistics give mean μ_e "
        "and std σ_e exactly, idempotent. An EMA of batch variances omits the variance of batch means. Matching minimises "
        "the Gaussian KL only for a diagonal codebook covariance."
    ),
    latex=r"c\mapsto\frac{\sigma_e}{\sigma_q}(c-\mu_q)+\mu_e,\qquad "
    r"c_{\rm std}=\frac{\sigma_e}{\sigma_q},\quad c_{\rm mean}=\mu_e-\frac{\sigma_e}{\sigma_q}\mu_q",
    hypotheses=("σ_q > 0",),
    source="001 eq. 38–45",
    stated={
        "c_std": scale_e / scale_q,
        "c_mean": mean_e - scale_e / scale_q * mean_q,
        "EMA of batch variances, true variance": sp.Tuple(0, 1),
        "best s²": sp.Rational(100, 19),
        "KL at matched moments": (sp.Rational(200, 19) - 2 + sp.log(sp.Rational(19, 100))) / 2,
        "KL at best s²": sp.log(sp.Rational(100, 19)) / 2,
        "diagonal: best σ_e²/(s²σ_q²)": sp.Integer(1),
    },
    tolerances={"relative to max|z| + (σ_e/σ_q) max|c|": (B + K + 10) * unit},
    steps=(
        algebra("the map written as scale and shift", _split),
        algebra("moments of the mapped codebook; applying it again is the identity", _matches),
        certificate("batches ±1 in turn", _between),
        certificate("a correlated codebook: 3.43 at matched moments, 0.83 at scale 2.29", _divergence),
        certificate("a diagonal one: the minimum is at matched moments, the KL being convex in ln s²", _diagonal),
    ),
    catches="std for mean, variance for std",
)

DERIVATIONS = (LEARNED, MOMENTS)
