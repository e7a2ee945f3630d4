"""T23 and T24: the synchronized update and alternating optimisation."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import same
from vqverify.symbolic.notation import d, unit

z, q, g, held, held_q = sp.symbols("z q g sg_q_minus_z sg_q", real=True)
eta, nu, kappa = sp.symbols("eta nu kappa", positive=True)
c, mean, n = sp.symbols("c zbar n", real=True)
B: Any = sp.Symbol("B", positive=True)
x_step: Any = sp.Symbol("r", nonnegative=True)  # eta n


def _forward_backward(f: Stated) -> bool:
    y = f["y"]
    value = y.subs({held: q - z, held_q: q})
    return same(value, q) and same((sp.diff(y, z), sp.diff(y, q)), f["∂y/∂z, ∂y/∂q"])


def _code_step(f: Stated) -> bool:
    # plain SGD at rate eta on β = 1 commitment (gradient q − z) and on the task through y (gradient nu g)
    after = q - eta * ((q - z) + sp.diff(f["y"], q) * g).subs(nu, eta)
    latent = z - eta * g
    return same(after, f["q'"].subs(sp.Symbol("z'"), latent)) and same(after, f["q' expanded"])


def _printed(f: Stated) -> bool:
    return not same(f["q' expanded"], (1 - eta) * q + eta * z + eta**2 * g)


SYNCHRONIZED = Derivation(
    id="update.synchronized",
    theorem="T23",
    title="Synchronized update",
    statement=(
        "y = z + sg(q − z) + ν(q − sg q): value q, ∂y/∂z = I, ∂L/∂c = νΣg. For a free z and plain SGD at one rate, "
        "ν = η is exactly q' = (1 − η)q + ηz' = (1 − η)q + ηz − η²g."
    ),
    latex=r"y=z+\mathrm{sg}(q-z)+\nu(q-\mathrm{sg}\,q),\qquad q'=(1-\eta)q+\eta z^{(t+1)}=(1-\eta)q+\eta z-\eta^2g",
    hypotheses=("z a free variable", "plain SGD, one rate", "commitment at β = 1"),
    source="001 eq. 20–21 (sign)",
    stated={
        "y": z + held + nu * (q - held_q),
        "∂y/∂z, ∂y/∂q": sp.Tuple(1, nu),
        "q'": (1 - eta) * q + eta * sp.Symbol("z'"),
        "q' expanded": (1 - eta) * q + eta * z - eta**2 * g,
    },
    tolerances={"relative to νΣ|g|": (n + 2) * unit},
    steps=(
        algebra("value and derivatives, with what is behind sg constant", _forward_backward),
        algebra("one step of SGD on code and latent", _code_step),
        certificate("the printed + η²g differs", _printed),
    ),
    catches="ν on z, +g",
)


def _cell(f: Stated) -> bool:
    # Σ|z − c|² over a cell is the spread plus n|c − z̄|²: by Σz = nz̄ and Σz² = nv, and for 3 free latents
    square = sp.Symbol("v", real=True)
    if not same((n * square - 2 * c * n * mean + n * c**2) - (n * square - n * mean**2), f["excess of a cell"]):
        return False
    latents = sp.symbols("z1:4", real=True)
    average = sum(latents) / 3
    spread = sum((latent - average) ** 2 for latent in latents)
    total = sum((latent - c) ** 2 for latent in latents)
    return same(total, spread + f["excess of a cell"].subs({n: 3, mean: average}, simultaneous=True))


def _shrinks(f: Stated) -> bool:
    after = c + eta * (n * mean - n * c)  # S = n z̄
    factor = sp.cancel((after - mean) / (c - mean))
    change = 1 - f["factor"] ** 2
    return same(factor, f["factor"]) and same(change.subs(n, x_step / eta), x_step * (2 - x_step))


def _range(f: Stated) -> bool:
    ratio = sp.Symbol("r", real=True)
    change = (1 - f["factor"] ** 2).subs(n, ratio / eta)
    return sp.solveset(sp.expand(change) >= 0, ratio, sp.S.Reals) == sp.Interval(*f["ηn from, to"])


def _fused(f: Stated) -> bool:
    moved = sp.Abs(sp.factor(c + eta * (n * mean - n * c) - c))
    return sp.simplify(kappa * moved - f["change of a task gradient"]) == 0


ALTERNATION = Derivation(
    id="update.alternating",
    theorem="T24",
    title="Alternation",
    statement=(
        "With assignments, then codes: any c ← c + η(S − nc) with 0 ≤ ηn ≤ 2, and reassignment, never increase "
        "Σ min|z − c|². A fused pass uses g(q_old): task gradients differ by ≤ κηn|z̄ − q|."
    ),
    latex=r"\sum_{z\in B}|z-c'|^2 - \sum_{z\in B}|z-\bar z|^2 = n(1-\eta n)^2|c-\bar z|^2,\qquad 0\le\eta n\le2",
    hypotheses=("0 ≤ ηn ≤ 2", "L∘G κ-smooth (for the fused pass)"),
    source="001 eq. 17–18, §5.4",
    stated={
        "excess of a cell": n * (c - mean) ** 2,
        "factor": 1 - eta * n,
        "ηn from, to": sp.Tuple(0, 2),
        "change of a task gradient": kappa * eta * sp.Abs(n) * sp.Abs(c - mean),
    },
    bounds=("ηn from, to", "change of a task gradient"),
    tolerances={"relative to Σ|z − c|²": (B + d + 4) * unit},
    steps=(
        algebra("parallel axis in a cell", _cell),
        algebra("the step multiplies c − z̄ by 1 − ηn, and 1 − (1 − r)² = r(2 − r)", _shrinks),
        certificate("which is nonnegative exactly for 0 ≤ ηn ≤ 2", _range),
        lemma("Reassignment takes the minimum over codes: no term grows"),
        algebra("the distance a code moves, times κ", _fused),
    ),
    catches="gradients leaking between blocks",
)

DERIVATIONS = (SYNCHRONIZED, ALTERNATION)
