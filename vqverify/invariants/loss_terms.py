"""What a term of the loss owes its weight, seen by constructing the layer again with another weight (theory T16)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, Violation, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.loss import TERMS, these_terms
from vqverify.invariants.measure import array, norms, roundoff, tiny
from vqverify.invariants.pulls import gradient_at, measure
from vqverify.invariants.weights import constructed
from vqverify.quantizer import Quantized, Quantizer

FEW = 4  # latents at least, for a batch without symmetry
ENDINGS = ("_weight", "_cost", "_lambda", "_coef", "_coeff")


def weight_arguments(subject: Quantizer) -> dict[str, float]:
    """The constructor's weights above 0, given or by default."""
    numbers = {name: value for name, value in constructed(subject).items() if value > 0}
    return {name: value for name, value in numbers.items() if name.endswith(ENDINGS) or name == "beta"}


def _weights(subject: Quantizer) -> tuple[str, ...]:
    return tuple(weight_arguments(subject))


@invariant(
    "loss.terms",
    source="definition; theory T16",
    needs=("loss",),
    mode="table",
    parts=_weights,
    corners=("generic", "single", "on-code", "unit"),
    mutants=("loss_weight_squared", "loss_weight_ignored"),
    hint="multiply a term by its weight once, where terms are added; look for a second factor, or a weight never read.",
)
def terms(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Each term is proportional to its weight, and moves something: loss and gradient are affine in the weight.

    That it moves something is asked of several latents of unlike size only: an entropy of the batch is 0 for a single
    latent, and a term may be stationary where latents are symmetric.
    """
    assert case.part is not None
    weight = weight_arguments(subject)[case.part]
    try:
        passes = [_pass(subject, case, weight * factor) for factor in (0.25, 0.5, 1.0)]
    except Violation:
        return  # not every weight is accepted
    if any(out is None for out in passes):
        return
    quarter, half, once = (out for out in passes if out is not None)
    if any(
        out.codes is not None and half.codes is not None and not torch.equal(out.codes, half.codes)
        for out in (quarter, once)
    ):
        return
    depth, u = case.z.numel() + 64, roundoff(subject)
    values = [float(out.loss.detach().double()) for out in (quarter, half, once) if out.loss is not None]
    gradients = [array(gradient_at(out, out.z.tensor)) for out in (quarter, half, once)]
    if len(values) < 3:
        return
    noise = depth * u * sum(map(abs, values)) + tiny(subject)
    rises = np.array([values[1] - values[0], values[2] - values[1]])
    yield within(
        rises[1] - 2 * rises[0],
        4 * noise,
        "affine",
        f"loss at {case.part} = w/4, w/2, w: {', '.join(f'{v:.6g}' for v in values)}",
    )
    steps = gradients[1] - gradients[0], gradients[2] - gradients[1]
    allowed = 4 * depth * u * sum(norms(g) for g in gradients) + tiny(subject)
    yield within(norms(steps[1] - 2 * steps[0]), allowed, "affine gradient", f"∂loss/∂z at {case.part} = w/4, w/2, w")
    away = norms(array(once.z_q.rows) - array(once.z.rows))
    if _unlike(sizes := norms(array(once.z.rows))) and (away > 1e-3 * sizes).all() and values[2] != 0:
        moves = abs(rises[0]) > 0 or bool(steps[0].any()) or _moves_codes(subject, case, weight)
        yield holds(moves, "idle", f"nothing changes with {case.part}")


def _unlike(sizes: np.ndarray) -> bool:
    """Whether there are a few latents of norms of their own."""
    sizes = np.sort(sizes)
    return int((np.diff(sizes) > 1e-3 * sizes[1:]).sum()) + 1 >= FEW


def _pass(subject: Quantizer, case: Case, weight: float) -> Quantized | None:
    twin = subject.build({str(case.part): weight})
    twin.restore()
    if case.codebook is not None:
        twin.set_codebook(case.codebook)
    out = twin.forward(case.z, train=True, seed=case.seed)
    return None if out.loss is None else out


def _moves_codes(subject: Quantizer, case: Case, weight: float) -> bool:
    """Whether the codebook's gradient depends on the weight."""
    found: list[tuple[torch.Tensor, ...]] = []
    for factor in (1.0, 2.0):
        twin = subject.build({str(case.part): factor * weight})
        twin.restore()
        out = twin.forward(case.z, train=True, seed=case.seed)
        if out.loss is None or not out.loss.requires_grad:
            return False
        found.append(twin.codebook_gradients(out.loss))
    return any(not torch.equal(a, b) for a, b in zip(*found, strict=True))


@invariant(
    "loss.descends",
    source="van den Oord 2017 eq. 3; theory T16",
    needs=TERMS,
    parts=these_terms,
    corners=("single", "tie", "parallel"),
    mutants=("loss_sign",),
    follows=("loss.gradients",),
    hint="a commitment pulls the latent towards its code: check the sign of the term.",
)
def descends(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A small step against the gradient does not raise the commitment distance: ⟨∂loss/∂z, z − q⟩ ≥ 0 a latent.

    Margin: the margin is 0 unless rounding turns a gradient around: the bound is for one that is nearly 0.
    """
    found = measure(subject, case)
    clauses: list[Clause] = []
    for side in found.sides if found is not None else ():
        along = (side.got * side.away).sum(-1)
        # the gradient is a multiple of z − q, off by the rounding of either
        allowed = 16 * roundoff(subject) * norms(side.got) * side.reach + tiny(subject)
        clauses.append(within(np.maximum(0.0, -along), allowed, "descends", "−⟨∂loss/∂z, z − q⟩"))
    if clauses:  # in code space or in the latents' own, where these differ
        yield min(clauses, key=lambda clause: clause.margin or 0.0)
