"""T12, T13 and T15: what gaps can and cannot say of an estimator, and the double forward."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate
from vqverify.symbolic.exact import is_root, round_to, same, small_floats
from vqverify.symbolic.gram import Span
from vqverify.symbolic.householder import ROTATION, SIGMA, with_vector
from vqverify.symbolic.notation import c, d, g, identity, lam, s, sigma, uhat, unit, vhat
from vqverify.symbolic.rounding import B1

kappa, e_norm, h, step = sp.symbols("kappa e_norm h eta", positive=True)
alpha, beta, z, q, phi = sp.symbols("alpha beta z q phi", real=True)
count: Any = sp.Symbol("N", positive=True)


def _quadratic(f: Stated) -> bool:
    # L = kappa |x|²/2: g(e) = kappa e, g(q) = kappa q
    span = with_vector()
    e, code = span.of(e_norm * uhat), span.of(lam * e_norm * vhat)
    back = span.of(f["J"]).T @ code
    rotation = (e + back.scaled(-1)).scaled(kappa)
    straight = (e + code.scaled(-1)).scaled(kappa)
    equal = {lam: 1}
    apart2 = 2 * e_norm**2 * (1 - c)
    return (
        rotation.equals(span.of(f["rotation's gap, ½κ|x|²"] * uhat))
        and is_root(
            f["STE's gap, ½κ|x|²"].subs(h, sp.Symbol("r", positive=True)), kappa**2 * sp.Symbol("r", positive=True) ** 2
        )
        and same((straight.T @ straight).scalar.subs(equal), kappa**2 * apart2)
    )


def _linear(f: Stated) -> bool:
    # L linear: g(e) = g(q) = g, in the plane
    span = with_vector()
    cotangent = span.of(alpha * uhat + beta * vhat)
    gap = cotangent + (span.of(f["J"]).T @ cotangent).scaled(-1)
    size2 = (cotangent.T @ cotangent).scalar
    apart2 = e_norm**2 * (lam**2 - 2 * lam * c + 1)
    names = {h: sp.sqrt(apart2), sp.Symbol("g_norm", positive=True): sp.sqrt(size2)}
    stated = f["rotation's gap, linear"]
    return stated.is_positive is True and same((gap.T @ gap).scalar, (stated**2).subs(names))


def _no_descent(f: Stated) -> bool:
    # L = αx, C = {0}: the gap is α − α, the latent runs away, the quantized loss L(0) stays 0
    loss = alpha * z
    slope = sp.diff(loss, z)
    after = z - step * slope.subs(z, q)
    return same(slope - slope.subs(z, q), f["gap, C = {0}"]) and same(after - z, f["drift per step"])


DOMINATION = Derivation(
    id="gap.no_domination",
    theorem="T12",
    title="Neither estimator dominates",
    statement=(
        "½κ|x|², |q| = |e|: the rotation's gap is 0, the STE's κh. Linear L, g in the plane: the STE's is 0, the "
        "rotation's |g|h/|e|. Gap 0 does not imply descent: L linear, C = {0}."
    ),
    latex=(
        r"L=\tfrac\kappa2|x|^2,\ |q|=|e|:\; 0 \text{ (rotation)},\ \kappa h \text{ (STE)};\qquad"
        r" L \text{ linear}:\; \frac{|g|h}{|e|} \text{ (rotation)},\ 0 \text{ (STE)}"
    ),
    hypotheses=("e ≠ 0", "q ≠ 0", "θ ≠ π"),
    source="theory page; 001 §3.2 claims otherwise",
    stated={
        "J": lam * ROTATION,
        "rotation's gap, ½κ|x|²": kappa * e_norm * (1 - lam**2),
        "STE's gap, ½κ|x|²": kappa * h,
        "rotation's gap, linear": sp.Symbol("g_norm", positive=True) * h / e_norm,
        "gap, C = {0}": sp.S.Zero,
        "drift per step": -step * alpha,
    },
    tolerances={"gap, H = κI": (d + 2) * unit * kappa * (1 + lam) * e_norm + B1 * lam**2 * kappa * e_norm},
    steps=(
        algebra("the quadratic: κ(1 − λ²)e, which is 0 for λ = 1, against κh", _quadratic),
        algebra("the linear loss", _linear),
        certificate("one code at 0 and a linear loss: no gap, no descent", _no_descent),
    ),
    catches="asserting that one estimator is better at every point",
)


def _only_identity(f: Stated) -> bool:
    # (I − Aᵀ)g = 0 for the basis vectors g has one solution
    entries = sp.Matrix(3, 3, sp.symbols("A1:10"))
    equations = (sp.eye(3) - entries.T).flat()
    solution = sp.solve(equations, entries.flat(), dict=True)
    return len(solution) == 1 and entries.subs(solution[0]) == f["A(q, q)"].subs(d, 3).as_explicit()


def _rotation_at_q(f: Stated) -> bool:
    # e = q: v̂ = û and λ = 1
    span = Span((uhat,), sp.Matrix([[1]]), {vhat: uhat, s: 2 * uhat}, {}, d)
    here = ROTATION.subs(SIGMA).subs(c, 1)
    return span.of(here).equals(span.of(f["A(q, q)"]))


def _rejected(f: Stated) -> bool:
    span = Span((uhat, g), sp.Matrix([[1, alpha], [alpha, beta]]), {vhat: uhat, s: 2 * uhat}, {}, d)
    projected, doubled = span.of(identity - uhat * uhat.T), span.of(2 * identity)
    here = span.of(f["A(q, q)"])
    mirror = span.of(identity - 2 * uhat * uhat.T)  # the reflection in û, −û to û
    return not any(other.equals(here) for other in (projected, doubled, mirror))


CONSISTENCY = Derivation(
    id="estimator.consistent",
    theorem="T13",
    title="Consistency",
    statement="A, continuous at e = q, has gap → 0 for every smooth L iff A(q, q) = I; the rotation has.",
    latex=r"\lim_{e\to q}\left|g(e)-A^{\mathsf T}g(q)\right| = 0\ \forall L \iff A(q,q)=I",
    hypotheses=("A continuous at e = q", "q ≠ 0"),
    source="theory page",
    stated={"A(q, q)": identity},
    tolerances={"|Jᵀg − g|/|g| at e = q": B1.subs(sigma, 2), "gap near q, relative to |g|h/|e|": sp.S.One},
    steps=(
        algebra("$(I - A^T)g = 0$ for every g has the solution I alone", _only_identity),
        algebra("λR at e = q", _rotation_at_q),
        certificate("I − ûûᵀ (T4), doubled paths and a reflection differ from I", _rejected),
    ),
    catches="I − ûûᵀ of T4, doubled paths",
)


def _branches(f: Stated) -> bool:
    """L(q) + L(e)/N, with the gradient of the e-branch times N, through a decoder with parameter phi."""
    loss = sp.Function("L")
    slot = sp.Symbol("slot")
    total = f["total loss"].subs({sp.Symbol("Lq"): loss(q, phi), sp.Symbol("Le"): loss(slot, phi)})
    encoder = f["multiplier"] * sp.diff(total, slot)
    decoder = sp.diff(total, phi)
    wanted = sp.diff(loss(q, phi), phi) + f["share of the e-branch"] * sp.diff(loss(slot, phi), phi)
    return same(encoder - sp.diff(loss(slot, phi), slot), 0) and same(decoder, wanted)


def _moves(f: Stated) -> bool:
    # decoder optimum of H φ²/2 + b φ/N
    curvature, slope = sp.Symbol("H", positive=True), sp.Symbol("b", real=True)
    (optimum,) = sp.solve(sp.diff(curvature * phi**2 / 2 + slope * phi / count, phi), phi)
    names = {sp.Symbol("H"): curvature, sp.Symbol("b"): slope}
    return same(optimum, f["shift of the optimum"].subs(names))


def _half_precision(f: Stated) -> bool:
    # what is below half the least subnormal, 2^-25, rounds to 0; the printed constant is it, to two digits
    example = sp.Rational(1, 10**5) / 1000
    return example < f["f16 returns 0 below"] == sp.Rational(1, 2**25) and sp.Abs(
        f["f16 returns 0 below"] - 3 * sp.Rational(1, 10**8)
    ) < sp.Rational(1, 10**9)


def _contamination(f: Stated) -> bool:
    # the e-branch's part of the decoder gradient against the other, and without bound where the other vanishes
    at_e, at_q = sp.symbols("g_e g_q", positive=True)
    stated = f["contamination"].subs(dict(zip(sp.symbols("g_e g_q"), (at_e, at_q), strict=True)))
    return same(f["share of the e-branch"] * at_e / at_q, stated) and sp.limit(stated, at_q, 0, "+") == sp.oo


def _only_the_branch(f: Stated) -> bool:
    # all of e multiplied: its task gradient is right, that of a commitment loss, which no 1/N made small, is not
    loss, slot = sp.Function("L"), sp.Symbol("slot")
    commitment = beta * (slot - q) ** 2
    received = sp.expand(f["multiplier"] * sp.diff(loss(slot) / count + commitment, slot))
    task = sp.diff(loss(slot), slot)
    return same(received - task, f["commitment gradient, all of e scaled"] * sp.diff(commitment, slot))


def _normalisation(f: Stated) -> bool:
    # a running mean is moved by the pass over q, then by the pass over e
    weight, old = sp.symbols("w mu", real=True)
    after = old
    for mean in (sp.Symbol("x_q"), sp.Symbol("x_e")):
        after = (1 - weight) * after + weight * mean
    return same(after, f["running mean after both"].subs({sp.Symbol("w"): weight, sp.Symbol("mu"): old}))


def _powers(f: Stated) -> bool:
    # (g/N)N for every 4-bit g: exact for N = 2 and 4, not for 3
    def exact(size: int) -> bool:
        return all(round_to(round_to(g / size, 4) * size, 4) == g for g in small_floats(4, 0, 0))

    return tuple(int(exact(size)) for size in (2, 4, 3)) == tuple(f["(g/N)N exact, N = 2, 4, 3"])


DOUBLE_FORWARD = Derivation(
    id="gap.exact",
    theorem="T15",
    title="Double forward",
    statement=(
        "L(q) + L(e)/N with the e-branch gradient × N: encoder gap 0; decoder gradient ∇L(q) + ∇L(e)/N; a decoder "
        "optimum moves by −H⁻¹∇L(e)/N to first order. The contamination |∇L(e)|/(N|∇L(q)|) is unbounded at an optimum. "
        "Scaling all of e multiplies the commitment gradient by N. A running mean sees both passes. (g/N)N is exact if N "
        "is a power of 2; f16 returns 0 for components below 3·10⁻⁸ N."
    ),
    latex=(
        r"\nabla_e = N\cdot\tfrac1N\nabla L(e),\qquad \nabla_\varphi = \nabla_\varphi L(q)+\tfrac1N\nabla_\varphi L(e),\qquad"
        r" \Delta\varphi^* = -\tfrac1N H_\varphi^{-1}\nabla_\varphi L(e) + O(N^{-2})"
    ),
    hypotheses=("only the e-branch is scaled", "H_φ invertible"),
    source="000 §3",
    stated={
        "total loss": sp.Symbol("Lq") + sp.Symbol("Le") / count,
        "multiplier": count,
        "share of the e-branch": 1 / count,
        "shift of the optimum": -sp.Symbol("b") / (count * sp.Symbol("H")),
        "contamination": sp.Symbol("g_e") / (count * sp.Symbol("g_q")),
        "commitment gradient, all of e scaled": count,
        "running mean after both": (1 - sp.Symbol("w")) ** 2 * sp.Symbol("mu")
        + sp.Symbol("w") * (1 - sp.Symbol("w")) * sp.Symbol("x_q")
        + sp.Symbol("w") * sp.Symbol("x_e"),
        "(g/N)N exact, N = 2, 4, 3": sp.Tuple(1, 1, 0),
        "f16 returns 0 below": sp.Rational(1, 2**25),
    },
    tolerances={"(g/N)N, relative": 2 * unit},
    steps=(
        algebra("linearity of the gradient, on a loss of free form", _branches),
        algebra("the optimum of the linearised decoder", _moves),
        algebra("the share of the e-branch in the decoder gradient, and its limit at an optimum", _contamination),
        algebra("N times all of e: the commitment gradient grows by N", _only_the_branch),
        algebra("normalisation statistics are moved by both passes", _normalisation),
        certificate("every 4-bit g divided and multiplied by N, rounded exactly", _powers),
        certificate("10⁻⁵/10³ is below half the least subnormal of f16", _half_precision),
    ),
    catches="scaling all of e, N on the wrong side",
)

DERIVATIONS = (DOMINATION, CONSISTENCY, DOUBLE_FORWARD)
