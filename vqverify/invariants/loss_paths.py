"""What a loss moves, and by which way its gradient runs (theory T16)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils import _pytree as pytree

from vqverify.bounds import Clause, Violation, holds
from vqverify.case import Case
from vqverify.invariant import Undetermined, invariant
from vqverify.invariants.loss import CORNERS
from vqverify.invariants.measure import scalars, stream, trait
from vqverify.invariants.pulls import gradient_at
from vqverify.invariants.residual import silenced
from vqverify.invariants.weights import constructed
from vqverify.quantizer import Quantized, Quantizer
from vqverify.subject.capture import pull

SAME = 1e-3  # relative: numbers of one formula, in single precision


@invariant(
    "loss.stop_gradients",
    source="van den Oord 2017 eq. 3; theory T16",
    needs=(
        "loss",
        "levels",
        "estimator!=softmax|gumbel",
    ),  # a relaxation is often trained through its mixture on purpose
    corners=CORNERS,
    mutants=("loss_after_patch", "loss_after_rotation"),
    hint="compute the loss before the estimator patches q: its output already sends gradients to z.",
)
def stop_gradients(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Commitment moves only z and the codebook loss only e: none of the loss runs through the estimator's output."""
    out = subject.forward(case.z, train=True, seed=case.seed, trace=True)
    if out.loss is None or not out.loss.requires_grad:
        return
    for index, level in enumerate(out.levels):
        code = level.q_c.tensor
        if level.z_c is None or not code.requires_grad or not _patched(out, index):
            continue
        later = [other.z_c.tensor for other in out.levels[index + 1 :] if other.z_c is not None]
        with silenced([tensor for tensor in later if tensor is not code and not tensor.is_leaf]):
            through = _through(out, code)
        yield holds(
            not through,
            "patched",
            f"the loss runs through the estimator's output at level {index} (up to {through:.3g})",
        )


VIEWS = (
    "View",
    "Reshape",
    "UnsafeView",
    "Permute",
    "Transpose",
    "T",
    "Select",
    "Unsqueeze",
    "Squeeze",
    "Clone",
    "ToCopy",
    "Slice",
)


def _through(out: Quantized, code: torch.Tensor) -> float:
    """Largest gradient that the loss sends into the operation that made a code, whatever its shape was afterwards."""
    node = code.grad_fn
    while node is not None and node.name().rstrip("0123456789").removesuffix("Backward") in VIEWS:
        node = node.next_functions[0][0]
    if node is None or not out.z.tensor.requires_grad:
        return 0.0
    seen: list[float] = []
    handle = node.register_prehook(
        lambda grads: seen.extend(float(g.abs().max()) for g in grads if g is not None and g.numel())
    )
    try:
        gradient_at(out, out.z.tensor)
    finally:
        handle.remove()
    return max(seen, default=0.0)


def _patched(out: Quantized, index: int) -> bool:
    """Whether q is the estimator's output, from which gradients reach the latent, and not the code before it."""
    level = out.levels[index]
    assert level.z_c is not None
    if level.z_c.tensor is level.q_c.tensor:
        return False
    rows = level.q_c.rows
    return bool(pull(rows, level.z_c.tensor, torch.ones_like(rows)).any())


def _trains_applies(subject: Quantizer) -> tuple[str | None, ...]:
    weight = subject.claims.get("commitment_weight")
    trainable = any(parameter.requires_grad for parameter in subject.module.parameters())
    heard = trait(subject, "loss", default=False)
    usual = (None,) if trainable or heard or (weight is not None and weight.value) else ()
    return usual if heard or _detached(subject) is None else (*usual, "detached")


@invariant(
    "loss.trains",
    source="van den Oord 2017 §3.2; theory T16",
    mode="table",
    corners=("single",),
    parts=_trains_applies,
    mutants=("loss_swapped_under_ema", "loss_swapped_unnamed", "loss_half_lost", "commitment_twice"),
    hint="a weight above 0 has to move something: look for a detach on both sides, .item(), .data, or a no_grad block; "
    "beside codes that take no gradient, swapped stop-gradients (the commitment is |z − sg q|²) move nothing at all.",
)
def trains(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Every loss moves something: the latents where there is a commitment weight.

    And every trainable parameter gets a gradient from some output, or the pass itself moves it.
    """
    if case.part == "detached":
        yield from _heard(subject)
        return
    generator = stream(case.seed)
    n = max(4 * subject.domain.dim + 16, subject.domain.min_n)
    books = subject.codebooks()
    size = float(books[0].abs().mean()) if books and books[0].shape[1] == subject.domain.dim else 1.0
    z = (size or 1.0) * torch.randn(n, subject.domain.dim, generator=generator).to(subject.domain.dtype)
    before = subject.state()
    out = subject.forward(z, train=True, seed=case.seed)
    after = subject.state()
    claim, estimator = subject.claims.get("commitment_weight"), subject.claims.get("estimator")
    if estimator is not None and estimator.value == "noise" and claim is not None and claim.origin == "default":
        claim = None  # such a layer trains codes and latents through z_q, and needs no loss
    if claim is not None and claim.value and not _has_other_space(subject):
        reached = out.loss is not None and bool(gradient_at(out, out.z.tensor).any())
        yield holds(
            reached,
            "latents",
            f"{claim.evidence or 'a commitment weight is declared'}, and the loss gives z no gradient",
        )
    for index, loss in enumerate(out.losses):
        leaves = [out.z.tensor, *(p for p in subject.module.parameters() if p.requires_grad)]
        moves = any(bool(_pulled(loss, leaf).any()) for leaf in leaves)
        moves = moves or not loss.requires_grad or _switched_off(subject, z, case.seed, index)
        yield holds(moves, "idle", f"loss {index} requires grad and moves nothing")
    yield from _one_a_term(subject, out)
    wanted = [(name, p) for name, p in subject.module.named_parameters() if p.requires_grad and p.numel()]
    outputs = [out.z_q.tensor, *out.losses]
    for name, parameter in wanted:
        moved = any(bool(_pulled(output, parameter).any()) for output in outputs)
        moved |= name in before and not torch.equal(before[name], after[name])  # by an optimiser or averages inside
        yield holds(moved, "parameter", f"no output gives the parameter {name} a gradient")


def _one_a_term(subject: Quantizer, out: Quantized) -> Iterator[Clause]:
    """Two outputs are not both the codebook's term: of equal value the other is a commitment, which moves the latents."""
    weight = subject.claims.get("commitment_weight")
    if weight is not None and not weight.value:
        return
    leaves = [leaf for leaf in pytree.tree_leaves(out.raw) if isinstance(leaf, torch.Tensor)]
    numbers = [leaf for leaf in leaves if leaf.numel() == 1 and leaf.is_floating_point() and leaf.requires_grad]
    moved = [p for p in subject.module.parameters() if p.requires_grad]
    for one, other in itertools.combinations(numbers, 2):
        if one.grad_fn is other.grad_fn or float(one.detach()) == 0 or not torch.equal(one.flatten(), other.flatten()):
            continue
        pairs = [(_pulled(one, leaf), _pulled(other, leaf)) for leaf in moved]
        same = all(torch.equal(a, b) for a, b in pairs) and any(bool(a.any()) for a, _ in pairs)
        idle = not any(bool(_pulled(number, out.z.tensor).any()) for number in (one, other))
        yield holds(
            not (same and idle),
            "twice",
            f"two outputs are {float(one.detach()):.4g}, move the same parameters, and neither moves the latents",
        )


def _heard(subject: Quantizer) -> Iterator[Clause]:
    """A weight other than 1 tells a loss from a quantization error that is there to be looked at."""
    found = _detached(subject)
    assert found is not None
    place, weight = found
    text = f"the number at output {place} is {weight:.4g}·mean|z − q|² and sends no gradient"
    if any(abs(weight - plain) < SAME * plain for plain in (1.0, float(subject.domain.dim))):
        raise Undetermined(f"{text}: a measure, or a commitment loss whose stop-gradient stands at the latents")
    yield holds(condition=False, label="idle", message=text)


def _detached(subject: Quantizer) -> tuple[int, float] | None:
    """Place and weight of a returned number that is a squared distance of latents and codes, over levels, without a gradient."""
    rows: list[list[float]] = []
    numbers: list[list[float]] = []
    for seed in range(8):
        subject.restore()
        z = torch.randn(max(12, subject.domain.min_n), subject.domain.dim, generator=stream(seed))
        out = subject.forward((seed + 1) * z.to(subject.domain.dtype), train=True, seed=seed, trace=True)
        pairs = [(level.z_c, level.q_c) for level in out.levels if level.z_c is not None] or [(out.z, out.z_q)]
        rows.append([float((z_c.rows.detach() - q_c.rows.detach()).double().square().mean()) for z_c, q_c in pairs])
        numbers.append(scalars(out))
        if not any(math.isfinite(number) for number in numbers[0]):
            return None
    if len({len(row) for row in rows}) > 1 or len({len(row) for row in numbers}) > 1 or len(rows[0]) > len(rows) - 2:
        return None
    errors = np.array(rows)
    for place, values in enumerate(np.array(numbers).T):
        if not np.isfinite(values).all() or not values.any():
            continue
        weights = np.linalg.lstsq(errors, values, rcond=None)[0]
        if np.abs(errors @ weights - values).max() < SAME * np.abs(values).max() and (weights > -SAME).all():
            return place, float(weights.sum())
    return None


def _switched_off(subject: Quantizer, z: torch.Tensor, seed: int, index: int) -> bool:
    """Whether a loss is one of weight 0: made 1, a number that was 0 lets it move the latents or a parameter."""
    for name in (name for name, number in constructed(subject).items() if not number):
        try:
            twin = subject.build({name: 1.0})
            twin.restore()
            out = twin.forward(z, train=True, seed=seed)
        except Violation:
            continue
        leaves = [out.z.tensor, *(p for p in twin.module.parameters() if p.requires_grad)]
        if index < len(out.losses) and any(bool(_pulled(out.losses[index], leaf).any()) for leaf in leaves):
            return True
    return False


def _has_other_space(subject: Quantizer) -> bool:
    return trait(subject, "structure") in {"scalar", "sign"}


def _pulled(output: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if not output.requires_grad:
        return torch.zeros_like(parameter)
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return pull(output, parameter, weights)
