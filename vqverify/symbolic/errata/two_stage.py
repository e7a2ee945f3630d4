"""Errata of the rotational and rescaling VQ-VAE (002)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy as sp

from vqverify.symbolic.errata.erratum import Erratum, against
from vqverify.symbolic.exact import same

z, q, held, code = sp.symbols("z q held c", real=True)
scale, gamma = sp.symbols("lambda gamma", positive=True)
p: Any = sp.Symbol("p", positive=True)


def _likelihood(sign: int) -> bool:
    # a loss falls as the likelihood of the data rises
    return sp.diff(sign * sp.log(p), p).is_negative is True


def _backward(output: Any) -> bool:
    # value q, and the Jacobian λ of the rotation (d = 1) where ``held`` is detached
    return same(output.subs(held, z).subs(q, scale * z), scale * z) and same(sp.diff(output, z), scale)


def _unused(update: Any) -> bool:
    # a code that starts at N = m = 0 and gets no latent stays finite and where it is
    after = update(sp.Integer(0), sp.Integer(0))
    return same(after, code) if after.is_finite else False


def _table2(total: Any) -> bool:
    # recon + (1 + b)·codebook with b = ¼, to the four digits printed; the other rows first
    def weighted(reconstruction: str, codebook: str) -> Fraction:
        return Fraction(reconstruction) + Fraction(5, 4) * Fraction(codebook)

    rows = ((".0433", ".0454", ".1000"), (".0092", ".0306", ".0475"), (".0077", ".0262", total))
    # each printed number is within half a unit of its last digit
    slack = Fraction(9, 4) * Fraction(1, 20000) + Fraction(1, 20000)
    return all(abs(weighted(left, right) - Fraction(stated)) <= slack for left, right, stated in rows)


ERRATA = (
    Erratum(
        "002.eq1",
        "002 eq. 1, 6, 7",
        "+ log p (and x lost in eq. 6)",
        "− log p(x | z)",
        "",
        "the loss falls in p",
        against(1, -1),
        _likelihood,
    ),
    Erratum(
        "002.eq8",
        "002 eq. 8",
        "z_e + (z_transformed − z_e).detach()",
        "q + J(z − sg z): as printed the backward is I, the plain STE, and the rotation is cancelled",
        "T14",
        "value λz and Jacobian λ in d = 1, detached parts held",
        against(z + (scale * held - held), q + scale * (z - held)),
        _backward,
    ),
    Erratum(
        "002.eq5",
        "002 eq. 5",
        "m/N",
        "0/0 if N = 0: a code without latents has to be held",
        "T18",
        "N = m = 0",
        against(lambda m, n: m / n, lambda m, n: m / n if n else code),
        _unused,
    ),
    Erratum(
        "002.table2",
        "002 Table 2",
        "total 0.0451 in three rows with 0.0077 and 0.0262",
        "0.0077 + 1.25·0.0262 = 0.0405",
        "T16",
        "recon + (1 + ¼)·codebook, which the other rows obey up to the printed digits",
        against(".0451", ".0405"),
        _table2,
    ),
)
