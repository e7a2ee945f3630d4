"""What a commitment loss owes its value: the gradient is its slope, and the variance bounds it (theory T16, T33)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.lookup_cells import in_own_space
from vqverify.invariants.loss import PLAIN, TERMS, elsewhere
from vqverify.invariants.loss_terms import ENDINGS
from vqverify.invariants.measure import array, norms, roundoff, tiny, trait
from vqverify.invariants.pulls import gradient_at, measure
from vqverify.invariants.weights import WEIGHTS, constructed, laws, undivided
from vqverify.quantizer import Quantized, Quantizer

OTHERS = ("entropy", "diversity", "ortho", "kl", "penalty", "loss_ratio", "reg_")  # in names of weights of other terms
STEP = 2.0**-5  # of the latents' size: a loss that is quadratic within a cell has no truncation error


def only_terms(subject: Quantizer) -> bool:
    """Whether the loss holds commitment and codebook terms only: found, or told by the weights that there are."""
    if trait(subject, "loss_coefficients") is not None:
        return True
    numbers = constructed(subject)
    names = [name for name in numbers if name.endswith(ENDINGS) or name == "beta"]
    names += [name for name, value in numbers.items() if value and any(word in name for word in OTHERS)]
    return bool(names) and set(names) <= {*WEIGHTS, "codebook_weight", "beta"}


def _quadratic(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where the loss is quadratic in z within a cell: not where codes are directions, as latents may be in it."""
    flat = trait(subject, "metric") == "euclidean" and trait(subject, "structure") == "plain"
    flat = flat and subject.domain.codebook == "free" and not elsewhere(subject)
    return (None,) if flat and only_terms(subject) else ()


@invariant(
    "loss.gradient_of_value",
    source="van den Oord 2017 eq. 3; theory T16",
    needs=(*TERMS, "deterministic", "alternating!=True", "affine!=moments"),  # else codes move with the latents
    parts=_quadratic,
    corners=("single", "parallel", "unit", "generic"),
    mutants=("codebook_overwritten_before_backward", "loss_scaled_in_backward"),
    follows=("loss.gradients",),
    hint="what backward reads must be what forward read: .data and in-place updates of a saved codebook bypass autograd's "
    "version check. Clone what the loss saves, or update after backward.",
)
def gradient_of_value(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A loss's gradient in z is the slope of its value at the state before the step, up to the stop-gradients.

    The value (a + b)F Σ|z − q|² is quadratic within a cell, so that a central difference has no truncation error; of
    its slope the gradient is the share a/(a + b).
    """
    out = subject.forward(case.z, train=True, seed=case.seed)
    if out.loss is None or out.codes is None:
        return
    pulled = array(gradient_at(out, out.z.tensor))
    size = case.z.abs().amax(1, keepdim=True)
    generator = torch.Generator().manual_seed(0x510 + case.seed)
    v = (torch.randint(0, 2, case.z.shape, generator=generator) * 2 - 1).to(case.z) * size
    sides: list[Quantized] = []
    for sign in (1, -1):
        prepare(subject, case)
        sides.append(subject.forward(case.z + sign * STEP * v, train=True, seed=case.seed, grad=False))
    plus, minus = sides
    if plus.loss is None or minus.loss is None or plus.codes is None or minus.codes is None:
        return
    if not (torch.equal(plus.codes, out.codes) and torch.equal(minus.codes, out.codes)):
        return
    # the latents as they were rounded
    moved = array(plus.z.rows) - array(minus.z.rows)
    rise = float(plus.loss.double()) - float(minus.loss.double())
    slope = float((pulled * moved).sum())
    u, depth = roundoff(subject), case.z.numel() + 32
    values = [abs(float(x.loss.double())) for x in (plus, minus) if x.loss is not None]
    book = norms(array(torch.cat(subject.codebooks()))).max(initial=0.0)
    noise = loose = 0.0
    shares: list[float] = []
    prepare(subject, case)
    found = measure(subject, case)
    for law in laws(subject, found) if found is not None else ():
        if law.a and found is not None:
            shares += [law.a / weight for weight in undivided(subject, found, law)]
            loose = max(loose, law.loose_a + law.loose_b)
            # |z − q|² is off by 2|z − q|δ + δ², δ = 4u(|z| + |q|), as its gradient is by 2δ
            delta = 4 * u * (norms(array(case.z)) * 2 + book)
            noise = max(
                noise, 4 * (law.a + law.b) * law.factor * float((delta * (norms(array(case.z)) * 2 + book)).sum())
            )
    if not shares:
        return
    allowed = 2 * depth * u * sum(values) + noise + (depth * u + loose) * abs(slope) + tiny(subject)
    errors = [slope - share * rise for share in dict.fromkeys(shares)]
    yield within(min(errors, key=abs), allowed, "slope", "⟨∂loss/∂z, v⟩ − its share of the difference of the values")


def _bounded(subject: Quantizer) -> tuple[str | None, ...]:
    return (None,) if in_own_space(subject) and only_terms(subject) else ()


@invariant(
    "loss.variance_bound",
    source="001 eq. 13, 30-37 as corrected; theory T33",
    needs=(*PLAIN, "settable", "deterministic"),
    parts=_bounded,
    corners=("single", "unit", "generic"),
    mutants=("loss_over_all_codes", "loss_misaligned"),
    follows=(
        "loss.value",
        "lookup.nearest",
        "update.gradient_codes",
        "update.alternating",
    ),
    hint="the distance to the nearest code is the least of all distances: a mean over the codes, or a code of another "
    "index, is above what the mean of the batch alone would cost.",
)
def variance_bound(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """½E min|z − c|² ≤ ½(tr Cov + min|c − μ|²): with the batch's mean among the codes, the loss is no more than with it alone.

    For the codebook of the mean alone that is an equality, ½ tr Cov.
    """
    (own,) = subject.codebooks()
    n, mean = len(case.z), case.z.double().mean(0)
    alone = mean.expand_as(own).to(own)
    mixed = own.clone()
    mixed[len(own) // 2] = alone[0]
    losses: list[float] = []
    for book in (alone, mixed):
        subject.restore()
        subject.set_codebook([book])
        out = subject.forward(case.z, train=True, seed=case.seed, grad=False)
        if out.loss is None:
            return
        losses.append(float(out.loss.detach().double()))
    u, z = roundoff(subject), array(case.z)
    squares = float((norms(z - array(alone)[0]) ** 2).sum())
    reach = float(((norms(z) + norms(array(alone)[0])) ** 2).sum())
    # of Σ|z − c|²: the sum, the differences, and a lookup that is nearest up to T28
    lost = (case.z.numel() + 32) * u * squares + 8 * u * np.sqrt(squares * reach) + 64 * u**2 * reach
    nearest = 2 * (z.shape[1] + 4) * u * float(((norms(z) + norms(array(mixed)).max()) ** 2).sum()) + 2e-8 * n
    if squares <= 2.0**-40 * reach or losses[0] <= 0:
        return  # nothing but rounding: the batch is its mean
    per_square = losses[0] / squares
    yield within(max(0.0, losses[1] - losses[0]), per_square * (2 * lost + nearest), "bound", _said(losses))
    subject.restore()
    subject.set_codebook([alone])
    found = measure(subject, case)
    read = [] if found is None else [(law, w) for law in laws(subject, found) for w in undivided(subject, found, law)]
    wanted = [(law.factor * weight, max(law.loose_a, law.loose_b)) for law, weight in read if weight]
    if wanted:
        weight, loose = min(wanted, key=lambda one: abs(losses[0] / one[0] - squares))
        yield within(
            abs(losses[0] - weight * squares),
            weight * (lost + loose * squares) + tiny(subject),
            "equality",
            "loss with the mean alone − tr Cov",
        )


def _said(losses: list[float]) -> str:
    return f"loss {losses[1]:.6g} with the batch's mean among the codes, {losses[0]:.6g} with it alone"
