"""Errata of "Straightening out the straight-through estimator" (001): steps of latents and codes."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.errata.erratum import Erratum, against
from vqverify.symbolic.exact import same

z, q, g, eta, kappa, code = sp.symbols("z q g eta kappa c", real=True)
points = sp.symbols("z1:4", real=True)


def _synchronized(term: Any) -> bool:
    # the code averages towards the latent after its own step z − ηg
    return same((1 - eta) * q + eta * (z - eta * g), (1 - eta) * q + eta * z + term)


def _fused(orders: Any) -> bool:
    """One fused pass, the gradient of both losses at one point, against compositions of its two block steps."""
    weight, decoder, x = sp.symbols("w phi x", real=True)
    held_z, held_q = sp.symbols("sg_z sg_q", real=True)
    task = kappa * (decoder * (weight * x + held_q - held_z)) ** 2 / 2  # straight-through
    commitment = (held_z - code) ** 2 / 2
    now = {held_z: weight * x, held_q: code}

    def step(loss: Any, *names: Any) -> Any:
        rates = {name: name - eta * sp.diff(loss, name).subs(now) for name in names}
        return lambda state: {
            name: rates[name].subs(state, simultaneous=True) if name in rates else state[name] for name in state
        }

    state = {name: name for name in (weight, decoder, code)}
    fused = step(task + commitment, *state)(state)
    blocks = {"codes": step(commitment, code), "model": step(task, weight, decoder)}

    def composed(order: Any) -> Any:
        after = state
        for together in order:  # the blocks of one entry start from the same state
            moved = [blocks[block](after) for block in together]
            after = {
                name: next((one[name] for one in moved if one[name] != after[name]), after[name]) for name in state
            }
        return after

    return any(all(same(composed(order)[name], fused[name]) for name in state) for order in orders)


def _gradient(claim: Any) -> bool:
    return same(sp.diff((z - q) ** 2 / 2, q), claim)


def _descent(claim: Any) -> bool:
    # one step on ½|z − q|², and the error that it leaves
    return same(q - eta * sp.diff((z - q) ** 2 / 2, q), claim) and same((claim - z) / (q - z), 1 - eta)


def _ball(claim: Any) -> bool:
    # the step on Σ½|z − c|² over three latents scales the distance to their mean by 1 − 3η
    mean = sum(points) / sp.Integer(3)
    return same(claim(sum(point - code for point in points)) - mean, (1 - 3 * eta) * (code - mean))


def _same_as_ema(beta: Any) -> bool:
    # −∂A_β/∂q is the step direction z − q of the memoryless average
    frozen = sp.Symbol("frozen")
    loss = beta * (frozen - q) ** 2 / 2
    slope: Any = sp.diff(loss, q)
    return same(-slope.subs(frozen, z), z - q)


ERRATA = (
    Erratum(
        "001.eq21",
        "001 eq. 21",
        "+η²∂L",
        "−η²∂L (its code is right)",
        "T23",
        "substitute the latent's step into the code's",
        against(eta**2 * g, -(eta**2) * g),
        _synchronized,
    ),
    Erratum(
        "001.s5.4",
        "001 §5.4",
        "one fused pass alternates",
        "it is simultaneous: the task gradient uses the old code",
        "T24",
        "encoder, decoder and code with a straight-through task: the fused pass, and the block steps in either order",
        against(
            ((("codes",), ("model",)), (("model",), ("codes",))),
            ((("codes", "model"),),),
        ),
        _fused,
    ),
    Erratum(
        "001.eq23",
        "001 eq. 23",
        "the gradient equals the loss",
        "the gradient is the derivative of the loss (∂ missing)",
        "T17",
        "differentiate ½|z − q|²",
        against((z - q) ** 2 / 2, q - z),
        _gradient,
    ),
    Erratum(
        "001.eq24",
        "001 eq. 24",
        "z_e − z_q",
        "z_q − z_e",
        "T17",
        "differentiate ½|z − q|² with respect to q",
        against(z - q, q - z),
        _gradient,
    ),
    Erratum(
        "001.eq27",
        "001 eq. 27",
        "z_q − η(z_e − z_q)",
        "z_q + η(z_e − z_q); as printed it diverges",
        "T17",
        "the gradient step scales the error by 1 − η",
        against(q - eta * (z - q), q + eta * (z - q)),
        _descent,
    ),
    Erratum(
        "001.eq28",
        "001 eq. 28",
        "(1 − η)z_e + ηz_q",
        "(1 − η)z_q + ηz_e",
        "T17",
        "the gradient step scales the error by 1 − η",
        against((1 - eta) * z + eta * q, (1 - eta) * q + eta * z),
        _descent,
    ),
    Erratum(
        "001.eq37",
        "001 eq. 37",
        "c − ηΣ(z − c)",
        "c + ηΣ(z − c), with ηn ≤ 2",
        "T24",
        "three latents: the distance to their mean is scaled by 1 − 3η",
        against(lambda total: code - eta * total, lambda total: code + eta * total),
        _ball,
    ),
    Erratum(
        "001.fig10",
        "001 Fig. 10",
        "β = 0 is the same as EMA",
        "β = 1 is; β = 0 never moves a code",
        "T16",
        "−∂A_β/∂q against z − q",
        against(sp.Integer(0), sp.Integer(1)),
        _same_as_ema,
    ),
)
