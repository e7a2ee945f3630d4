"""T9 to T11: how far an estimated gradient is from the gradient at the latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import is_root, nonnegative, same
from vqverify.symbolic.extremal import MIRROR
from vqverify.symbolic.gram import Element, Span, concrete
from vqverify.symbolic.householder import ROTATION as R
from vqverify.symbolic.householder import plane, with_vector
from vqverify.symbolic.notation import d, g, lam, s, sigma, uhat, vhat

kappa: Any = sp.Symbol("kappa", nonnegative=True)
h: Any = sp.Symbol("h", nonnegative=True)
M: Any = sp.Symbol("M", nonnegative=True)
g_norm: Any = sp.Symbol("g_norm", nonnegative=True)
e_norm: Any = sp.Symbol("e_norm", positive=True)
e, q, y, t = sp.symbols("e q y t", real=True)
alpha, beta = sp.symbols("alpha beta", real=True)
lip_g, lip_l, kappa_g, kappa_l = sp.symbols("lip_G lip_L kappa_G kappa_L", nonnegative=True)


def _quadratics(f: Stated) -> bool:
    # |H(e − q)| for a symmetric H with eigenvalues h_i, h_i² = kappa² − w_i
    delta = sp.symbols("delta1:4", real=True)
    slack = sp.symbols("w1:4", nonnegative=True)
    gap2 = sum((kappa**2 - w) * entry**2 for w, entry in zip(slack, delta, strict=True))
    bound2 = (f["bound"] ** 2).subs(h, sp.sqrt(sum(entry**2 for entry in delta)))
    return nonnegative(bound2 - gap2, sum(w * entry**2 for w, entry in zip(slack, delta, strict=True)))


def _tight_ste(f: Stated) -> bool:
    # L = kappa |x|²/2
    loss = kappa * y**2 / 2
    slope = sp.diff(loss, y)
    return same(slope.subs(y, q + h) - slope.subs(y, q), f["bound"])


def _too_little(f: Stated) -> bool:
    # G Lipschitz only: G = |x|, L = y; G smooth only: G = x, L = 50 y²; and the false bound kappa h²/2
    kink = sp.diff(-y, y).subs(y, -h) - sp.diff(y, y).subs(y, h)
    steep = sp.diff(50 * y**2, y)
    half = kappa * h**2 / 2
    example = {kappa: 1, h: sp.Rational(1, 10)}
    return (
        same(sp.Abs(kink), f["gap of |x|"])
        and same(steep.subs(y, q + h) - steep.subs(y, q), f["gap of 50y²"])
        and f["bound"].subs(example) > half.subs(example)
    )


def _chain_rule(_: Stated) -> bool:
    # ∇(L∘G) = J_Gᵀ ∇L for free functions G of two variables with two components and L of two
    x = sp.symbols("x1:3", real=True)
    inner = [sp.Function(name)(*x) for name in ("G1", "G2")]
    slots = sp.symbols("y1:3")
    outer = sp.Function("L")
    at = dict(zip(slots, inner, strict=True))
    slopes = sp.Matrix([sp.Subs(sp.diff(outer(*slots), slot), slots, inner) for slot in slots])
    product = sp.Matrix(inner).jacobian(x).T * slopes.applyfunc(lambda entry: entry.doit())
    return all(
        sp.diff(outer(*slots).subs(at), one).doit() == sp.expand(entry) for one, entry in zip(x, product, strict=True)
    )


def _size(expression: Any, sizes: Mapping[Any, Any]) -> Any:
    """A bound on the norm of a matrix expression: triangle inequality and |AB| ≤ |A||B|, from bounds on its parts."""
    if expression in sizes:
        return sizes[expression]
    combine: Any = {sp.MatAdd: sum, sp.MatMul: sp.prod}[expression.func]
    return combine([_size(part, sizes) for part in expression.args])


def _composite(f: Stated) -> bool:
    # J_eᵀl_e − J_qᵀl_q = J_eᵀ(l_e − l_q) + (J_e − J_q)ᵀl_q, with J the Jacobian of G and l the gradient of L
    rows, cols = sp.symbols("m n", integer=True, positive=True)
    jacobians = J_e, J_q = sp.MatrixSymbol("J_e", rows, cols), sp.MatrixSymbol("J_q", rows, cols)
    slopes = l_e, l_q = sp.MatrixSymbol("l_e", rows, 1), sp.MatrixSymbol("l_q", rows, 1)
    apart: list[Any] = [one - other for one, other in (jacobians, slopes)]
    split = J_e.T * apart[1] + apart[0].T * l_q
    sizes = {J_e.T: lip_g, apart[1]: kappa_l * lip_g * h, apart[0].T: kappa_g * h, l_q: lip_l}  # |Aᵀ| = |A|
    difference = (J_e.T * l_e - J_q.T * l_q - split).expand().doit()
    return difference == sp.ZeroMatrix(cols, 1) and same(_size(split, sizes), f["κ of L∘G"] * h)


STE = Derivation(
    id="gap.ste",
    theorem="T9",
    title="Gap of the straight-through estimator",
    statement=(
        "If L∘G is κ-smooth on [e, q], then |g(e) − g(q)| ≤ κh with h = |q − e|, with equality for ½κ|x|². That G is "
        "Lipschitz, or G alone smooth, is not enough; κ·½h² is false. κ of L∘G ≤ κ_L Lip(G)² + Lip(L)κ_G."
    ),
    latex=r"|g(e)-g(q)| \le \kappa\,h,\qquad "
    r"\kappa_{L\circ G} \le \kappa_L\operatorname{Lip}(G)^2 + \operatorname{Lip}(L)\,\kappa_G",
    hypotheses=("∇(L∘G) is κ-Lipschitz on the segment [e, q]",),
    source="001 §3.2, eq. 14",
    stated={
        "bound": kappa * h,
        "gap of |x|": sp.Integer(2),
        "gap of 50y²": 100 * h,
        "κ of L∘G": kappa_l * lip_g**2 + lip_l * kappa_g,
    },
    bounds=("bound", "κ of L∘G"),
    steps=(
        lemma("The definition of a κ-Lipschitz gradient, applied to e and q"),
        certificate("quadratics with eigenvalues in [−κ, κ]: κ²|δ|² − |Hδ|² is a sum of squares", _quadratics),
        algebra("equality for ½κ|x|²", _tight_ste),
        certificate("counterexamples to weaker hypotheses and to κ·½h²", _too_little),
        algebra("the chain rule $\\nabla(L\\circ G) = J_G^T\\nabla L$, free functions, 2 → 2 → 1", _chain_rule),
        lemma("The chain rule in every dimension; triangle inequality and $\\|AB\\| \\le \\|A\\|\\,\\|B\\|$"),
        algebra(
            "$J_e^Tl_e - J_q^Tl_q = J_e^T(l_e-l_q) + (J_e-J_q)^Tl_q$ (matrices of any size), term by term the bound",
            _composite,
        ),
    ),
    catches="a backward that is not the identity",
)


def _turned(f: Stated) -> bool:
    # |(I − Jᵀ)g| for g in the plane is |g| |q − e| / |e|
    span = with_vector()
    cotangent = span.of(alpha * uhat + beta * vhat)
    moved = cotangent + (span.of(lam * R).T @ cotangent).scaled(-1)
    apart = span.of(e_norm * lam * vhat - e_norm * uhat)
    term = (f["bound"].subs(kappa, 0) / (g_norm * h)) ** 2
    squared = (cotangent.T @ cotangent).scalar * (apart.T @ apart).scalar * term
    return same((moved.T @ moved).scalar, squared)


def _tight_rotation(f: Stated) -> bool:
    # d = 2, e = |e|(1, 0), c = 3/5: H takes (e − q)/h to the direction of (I − Jᵀ)g, as a reflection times kappa
    e_vec = e_norm * sp.Matrix([1, 0])
    v = sp.Matrix([sp.Rational(3, 5), sp.Rational(4, 5)])
    u = sp.Matrix([1, 0])
    length = sp.Symbol("g", positive=True)
    jacobian = concrete(lam * R, {uhat: u, vhat: v, s: u + v, sigma: sp.sqrt(sp.Rational(16, 5)), lam: 1}, 2)
    cotangent = length * u
    turned = cotangent - jacobian.T * cotangent
    apart = e_vec - e_norm * v
    distance = sp.sqrt(apart.dot(apart))
    one, other = apart / distance, turned / sp.sqrt(turned.dot(turned))
    axis = one - other
    hessian = kappa * (sp.eye(2) - 2 * axis * axis.T / axis.dot(axis))
    gap = hessian * apart + turned
    gap2 = sp.expand(gap.dot(gap))
    return hessian == hessian.T and is_root(f["bound"].subs({g_norm: length, h: distance}), gap2)


def _aligned(f: Stated) -> bool:
    # κ times the reflection that takes one unit vector to another: both terms along v̂ at any angle
    span = plane()
    hessian = span.of(kappa * MIRROR)
    turned = hessian @ span.of(h * uhat) + span.of(g_norm * h / e_norm * vhat)
    return hessian.equals(hessian.T) and is_root(f["bound"], (turned.T @ turned).scalar)


def _first_order(f: Stated) -> bool:
    """At q = e + hδ: the derivative in h of Hδ-free part of g(e) − Jᵀg(q), by Gram algebra at h = 0."""
    delta = sp.MatrixSymbol("delta_perp", d, 1)
    base = sp.MatrixSymbol("u_0", d, 1)
    radial, size, ug, pg = sp.symbols("delta_u p2 ug pg", real=True)
    gram = sp.Matrix([[1, 0, ug], [0, size, pg], [ug, pg, sp.Symbol("n2")]])
    moved = {uhat: base, vhat: base + t * delta / e_norm}
    span = Span((base, delta, g), gram, {**moved, s: base + moved[vhat]}, {}, d)
    operator = span.of(R.subs(sigma, 2))  # c = 1 to first order in h
    stretched = 1 + t * radial / e_norm
    back = (operator.T @ span.of(g)).scaled(stretched)
    rate = Element(span, rows=True, cols=False, ident=sp.S.Zero, coeff=sp.diff(back.coeff, t).subs(t, 0))
    names = dict(zip(sp.symbols("delta_u ug pg"), (radial, ug, pg), strict=True))
    stated = span.of(f["first order of Jᵀg"]).coeff.subs(names)
    return same(rate.coeff, stated)


ROTATION = Derivation(
    id="gap.rotation",
    theorem="T10",
    title="Gap of the rotation estimator",
    statement=(
        "Under the hypothesis of T9, |g(e) − Jᵀg(q)| ≤ (κ + |g(q)|/|e|)h, with equality for some quadratic. First order "
        "in h with the coefficient |Hδ + [(δ·û)g + û(δ_⟂·g) − δ_⟂(û·g)]/|e||."
    ),
    latex=(
        r"|g(e)-J^{\mathsf T}g(q)| \le \left(\kappa+\frac{|g(q)|}{|e|}\right)h,\qquad"
        r" h\left|H\delta+\frac{(\delta\cdot\hat u)g+\hat u(\delta_\perp\cdot g)-\delta_\perp(\hat u\cdot g)}{|e|}\right|+O(h^2)"
    ),
    hypotheses=("∇(L∘G) is κ-Lipschitz on the segment [e, q]", "e ≠ 0", "q ≠ 0", "θ ≠ π"),
    source="theory page",
    stated={
        "bound": (kappa + g_norm / e_norm) * h,
        "first order of Jᵀg": (
            sp.Symbol("delta_u") * g
            + sp.MatrixSymbol("u_0", d, 1) * sp.Symbol("pg")
            - sp.MatrixSymbol("delta_perp", d, 1) * sp.Symbol("ug")
        )
        / e_norm,
    },
    bounds=("bound",),
    steps=(
        lemma("Triangle inequality: g(e) − Jᵀg(q) = [g(e) − g(q)] + (I − Jᵀ)g(q), with T9 and T3"),
        algebra("the second term is |g| h/|e| for g in the plane, which is T3's extreme case", _turned),
        algebra("a quadratic, κ times a reflection, aligns both terms: equality at every e and q", _aligned),
        certificate("the same with explicit vectors, cos θ = 3/5, free κ, |g|, |e|", _tight_rotation),
        algebra("the derivative of $J^Tg$ in h at e", _first_order),
    ),
    catches="a turn in the wrong plane, λ dropped",
)


def _orders(f: Stated) -> bool:
    # the three bounds, each reached by some loss, as powers of h
    bounds = (STE.stated["bound"], ROTATION.stated["bound"], f["bound"])
    return tuple(sp.Poly(bound, h).degree() for bound in bounds) == tuple(f["orders: STE, rotation, Hessian"])


def _integral(f: Stated) -> bool:
    # |∫ (H(q + tδ) − H(q)) δ dt| <= ∫ M t h² dt
    return same(sp.integrate(M * t * h**2, (t, 0, 1)), f["bound"])


def _cubic(f: Stated) -> bool:
    slope = sp.diff(M * y**3 / 6, y)
    gap = slope.subs(y, q + h) - f["estimate"].subs(
        {
            sp.Symbol("g"): slope.subs(y, q),
            sp.Symbol("H"): sp.diff(slope, y).subs(y, q),
            e: q + h,
        }
    )
    return same(gap, f["bound"])


def _quadratic(f: Stated) -> bool:
    slope = kappa * y + beta
    names = {sp.Symbol("g"): slope.subs(y, q), sp.Symbol("H"): sp.diff(slope, y)}
    right = slope.subs(y, q + h) - f["estimate"].subs({**names, e: q + h})
    swapped = slope.subs(y, q + h) - f["estimate"].subs({**names, e: q - h})
    return same(right, 0) and same(swapped, f["gap with q − e"])


HESSIAN = Derivation(
    id="gap.order",
    theorem="T11",
    title="Orders of the gap",
    statement=(
        "STE and rotation: order 1. Hessian estimate g(q) + H(q)(e − q): ≤ ½Mh² if H is M-Lipschitz, with equality on "
        "cubics, 0 on quadratics. Double forward: 0. With q − e in place of e − q: order 1, up to 2κh."
    ),
    latex=r"\left|g(e) - g(q) - H(q)(e-q)\right| \le \tfrac12 M h^2",
    hypotheses=("H is M-Lipschitz on the segment [e, q]",),
    source="000 §3",
    stated={
        "bound": M * h**2 / 2,
        "estimate": sp.Symbol("g") + sp.Symbol("H") * (e - q),
        "orders: STE, rotation, Hessian": sp.Tuple(1, 1, 2),
        "gap with q − e": 2 * kappa * h,
    },
    bounds=("bound",),
    steps=(
        lemma(
            "Taylor: $g(e)-g(q)=\\int_0^1H(q+t\\delta)\\delta\\,dt$, and $|\\int v| \\le \\int|v|$, in every dimension"
        ),
        algebra("the integral of the Lipschitz bound on $|(H(q+t\\delta)-H(q))\\delta|$", _integral),
        algebra("equality on the cubic M x³/6", _cubic),
        algebra("0 on quadratics; 2κh with the sign exchanged", _quadratic),
        algebra("the bounds of T9, T10 and T11 as powers of h", _orders),
    ),
    catches="q − e for e − q",
)

DERIVATIONS = (STE, ROTATION, HESSIAN)
