"""The backward pass: which gradient takes the place of the one that does not exist (theory T1-T13)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, Violation, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import (
    SAFE,
    Array,
    Rows,
    View,
    array,
    norms,
    paths,
    rotation_law_bound,
    roundoff,
    sigma,
    tiny,
    traced,
    trait,
)
from vqverify.invariants.rotation import cotangents, received
from vqverify.quantizer import Quantized, Quantizer
from vqverify.subject.capture import gradient
from vqverify.subject.families import CORRECT
from vqverify.subject.guards import guarded

LINEAR = ("straight-through", "rotation")
SURROGATES = {family.name: family for family in CORRECT}


def _law_bound(subject: Quantizer, view: View, u: float) -> Array:
    """Relative error of Jᵀg that the declared estimator allows, a row."""
    if trait(subject, "estimator") == "straight-through":
        return np.full(len(view.z), 8 * u)
    return rotation_law_bound(view.z, view.q, u)


@invariant(
    "estimator.jacobian",
    follows=(
        "honesty.traits[estimator]",
        "rotation.angle",
        "rotation.norm",
        "rotation.determinant",
        "estimator.local",
        "estimator.linear",
        "estimator.detached",
        "interface.accumulates",
    ),
    source="000 §4, 001 §2; theory T1, T9",
    needs=("levels", "estimator=straight-through|rotation"),
    state="both",
    mutants=(
        "rotation_transposed",
        "rotation_unscaled",
        "silent_straight_through",
        "rotation_reflection",
        "straight_through_scaled",
    ),
    hint="compare with the surrogate row by row: identity for straight-through, λRᵀg for the rotation.",
)
def jacobian(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The gradient that a latent receives is the declared estimator's surrogate applied to the gradient at its code."""
    out = traced(subject, case)
    family = SURROGATES[trait(subject, "estimator")]
    u = roundoff(subject)
    for view in paths(subject, out):
        bound = _law_bound(subject, view, u)
        keep = np.flatnonzero((bound < SAFE) & (view.k >= 0))
        if len(keep):
            g = cotangents(subject, case, view)
            got = received(subject, out, view, g)[keep]
            z, q, g = view.z[keep], view.q[keep], g[keep]
            want = family.vjp(z, q, g)
            scale = np.ones(len(z)) if family.name == "straight-through" else norms(q) / norms(z)
            yield within(
                norms(got - want),
                scale * norms(g) * bound[keep],
                "jacobian",
                f"|Jᵀg − {family.name}| at level {view.index}",
            )


@invariant(
    "estimator.local",
    source="definition; theory T1",
    needs=("estimator!=none", "deterministic"),
    mutants=("gradient_centred",),
    hint="norms and dot products run over the features of one latent, not over the batch.",
)
def local(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A latent's gradient depends on its own cotangent alone."""
    n = len(case.z)
    if n < 2:
        return
    out = subject.forward(case.z, train=True, seed=case.seed)
    g = torch.ones_like(case.g) + case.g
    g[::2] = 0
    got = array(subject.vjp(out, g))
    kept = got[::2][np.isfinite(got[::2]).all(axis=1)]
    yield holds(not kept.any(), "local", "latents whose outputs were given no gradient receive some")


@invariant(
    "estimator.linear",
    source="definition; theory T1",
    needs=("estimator!=none",),
    mutants=("gradient_clipped",),
    hint="a Jacobian is linear in the cotangent: no clipping, no normalisation of gradients inside the layer.",
)
def linear(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The received gradient is linear in the sent one; doubling and negating are exact in floating point.

    Margin: powers of two commute with rounding, so that a right layer's margin is 0 there.
    """
    out = subject.forward(case.z, train=True, seed=case.seed)
    once = array(subject.vjp(out, case.g))
    fine = np.isfinite(once).all(1)
    for factor in (2.0, -1.0, 1024.0):
        scaled = array(subject.vjp(out, factor * case.g))
        yield within(
            norms(scaled - factor * once)[fine],
            abs(factor) * norms(once)[fine] * roundoff(subject) * 4 + tiny(subject),
            "linear",
            f"J({factor:g}g) − {factor:g}J(g)",
        )


def on_codes(subject: Quantizer, case: Case) -> Iterator[tuple[Quantized, View, Rows, Array]]:
    """Levels of a pass with the rows where the latent is its code, and how much J may differ from I there.

    Where no latent of the case is a code and the codebook of a single level may be written, the latents
    themselves become codes: so the statement is reached behind a projection, too. By T3, ‖J − I‖ = |q − z|/|z|.
    """
    out = traced(subject, case)
    u = roundoff(subject)
    if (
        trait(subject, "settable")
        and len(out.levels) == 1
        and not any(len(_same(view)) for view in paths(subject, out))
    ):
        for view in paths(subject, out):
            book = view.codebook.copy()
            count = min(len(book), len(view.z))
            book[:count] = view.z[:count]
            subject.restore()
            subject.set_codebook([torch.from_numpy(book).to(out.codebook[0])])
            out = subject.forward(case.z, train=True, seed=case.seed, trace=True)
    for view in paths(subject, out):
        bound = rotation_law_bound(view.z, view.q, u)
        keep = _same(view)
        keep = keep[bound[keep] < SAFE]
        if len(keep):
            z, q = view.z[keep], view.q[keep]
            yield out, view, keep, bound[keep] + norms(q - z) / norms(z)


def _same(view: View) -> Rows:
    """Rows whose latent is its code, up to the rounding of a normalisation."""
    return np.flatnonzero((norms(view.z - view.q) <= 1e-5 * norms(view.q)) & (view.k >= 0))


def at_codes(subject: Quantizer) -> Iterator[Clause]:
    """For an estimator that sees the task: latents on their codes receive the gradient of a task that is no quadratic."""
    (book,) = subject.codebooks()
    z = book.to(subject.domain.dtype)
    got = array(subject.grad(z, lambda x: torch.sin(x).sum()))
    allowed = 8 * roundoff(subject) * np.sqrt(z.shape[1])
    yield within(norms(got - np.cos(array(z))), allowed, "identity", "|Jᵀg − g| where z = q")


@invariant(
    "estimator.consistent",
    follows=("estimator.jacobian", "estimator.detached"),
    source="theory T13",
    needs=("levels", "estimator=straight-through|rotation|hessian", "codebook"),
    corners=("on-code", "single"),
    mutants=("straight_through_scaled", "rotation_differentiated"),
    hint="where the latent is its code, nothing is to be estimated: J = I. Factors inside the graph lose the radial gradient.",
)
def consistent(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """At z = q the Jacobian is the identity: an estimator that is exact in the limit has to be."""
    if trait(subject, "estimator") == "hessian":
        yield from at_codes(subject)
        return
    for out, view, keep, bound in on_codes(subject, case):
        g = cotangents(subject, case, view)
        got = received(subject, out, view, g)[keep]
        yield within(
            norms(got - g[keep]), norms(g[keep]) * bound, "identity", f"|Jᵀg − g| where z = q, level {view.index}"
        )


@invariant(
    "estimator.finite",
    source="theory T6",
    state="both",
    corners=("zero", "on-code", "antiparallel", "tie", "single", "duplicates", "parallel"),
    mutants=("rotation_unguarded",),
    hint="0/0 at z = 0 and z = −q, a root differentiated at 0: guard the degenerate rows with a stated convention.",
)
def finite(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Gradients of z_q and of the losses are finite for z = 0, q = 0, z = −q, z = q and duplicates."""
    out = subject.forward(case.z, train=True, seed=case.seed)
    got = array(subject.vjp(out, case.g))
    yield holds(np.isfinite(array(out.z_q.rows)).all(), "value", "z_q is not finite")
    yield holds(np.isfinite(got).all(), "gradient", f"the gradient of z_q is not finite for latents {_rows(got)}")
    for index, loss in enumerate(out.losses):
        yield holds(bool(torch.isfinite(loss).all()), "loss", f"loss {index} is not finite")
        if loss.requires_grad:
            with guarded("backward of the loss"):
                pulled = gradient(loss.sum(), out.z.tensor)
            if pulled is not None:
                yield holds(
                    bool(torch.isfinite(pulled).all()), "loss gradient", f"the gradient of loss {index} is not finite"
                )


def _rows(values: Array) -> str:
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    return ", ".join(map(str, bad[:5]))


@invariant(
    "estimator.detached",
    source="theory T4",
    needs=("estimator=straight-through|rotation", "levels"),
    mutants=("rotation_differentiated",),
    hint="R and λ are constants of the backward pass: detach them, or a second differentiation runs through them.",
)
def detached(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The estimator's factors are constants: differentiated again, the received gradient depends on the sent one only."""
    for level in traced(subject, case).levels:
        if level.z_c is None or not level.q_c.tensor.requires_grad:
            continue
        rows = level.q_c.rows
        g = torch.ones_like(rows).requires_grad_()
        try:
            first = gradient(rows, level.z_c.tensor, g, create_graph=True)
        except RuntimeError as error:
            raise Violation("raised", f"backward with create_graph raised {error}") from error
        if first is None or not first.requires_grad:
            continue
        try:
            again = gradient(first.square().sum(), level.z_c.tensor)
        except RuntimeError:
            continue  # a backward that is marked as differentiable once refuses, and says so
        left = 0.0 if again is None else float(torch.nan_to_num(again).abs().max())
        yield holds(not left, "attached", f"a second differentiation runs through the factors (up to {left:.3g})")


@invariant(
    "estimator.same_in_eval",
    kind="contract",
    source="definition",
    needs=("estimator=straight-through|rotation", "deterministic"),
    state="both",
    mutants=("estimator_other_in_eval",),
    hint="eval may return the code without a gradient, or the same estimator: anything else surprises who differentiates in eval.",
)
def same_in_eval(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """In eval the layer either has the same Jacobian as in train, or none at all.

    Margin: the same expression in both modes has a margin of 0; the bound is for one that rounds otherwise.
    """
    train = subject.forward(case.z, train=True, seed=case.seed)
    subject.restore()
    if case.codebook is not None:
        subject.set_codebook(case.codebook)
    if case.history:
        return
    plain = subject.forward(case.z, train=False, seed=case.seed)
    a, b = array(subject.vjp(train, case.g)), array(subject.vjp(plain, case.g))
    if not b.any() or not np.isfinite(a).all():
        yield holds(condition=True, label="none", message="")
        return
    u = roundoff(subject)
    z, q = array(case.z), array(plain.z_q.rows)
    relative = np.minimum(rotation_law_bound(z, q, u) * 4 + 64 * u, 10.0)
    keep = (relative < SAFE) & (sigma(z, q) > 0.1)
    if keep.any():
        yield within(
            norms(a - b)[keep], (norms(a) + norms(b))[keep] * relative[keep], "eval", "|Jᵀg in train − in eval|"
        )
