"""Codebooks that gradients move: of the loss, of the task, or of an optimiser inside the layer (theory T16, T23, T24)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, holds, unit_roundoff, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.loss import elsewhere
from vqverify.invariants.measure import Array, array, norms, roundoff, tiny, traced, trait, views
from vqverify.invariants.pulls import Measured, measure
from vqverify.invariants.weights import laws, weighed
from vqverify.quantizer import Quantizer
from vqverify.symbolic import oracles


def distances_only(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where the loss is of commitment and codebook terms: its weights were found, or it vanishes on the codes."""
    if elsewhere(subject):
        return ()
    if trait(subject, "loss_coefficients") is not None:
        return (None,)
    books = subject.codebooks()
    if len(books) != 1 or books[0].shape[1] != subject.domain.dim or trait(subject, "metric") != "euclidean":
        return ()
    z = books[0].repeat(-(-subject.domain.min_n // len(books[0])), 1).to(subject.domain.dtype)
    out = subject.forward(z, train=True)
    small = 1e-6 * float(z.square().sum())
    if out.loss is None or not out.loss.requires_grad or abs(float(out.loss)) > small:
        return ()
    return (None,) if all(float(g.norm()) <= small**0.5 * 1e-2 for g in subject.codebook_gradients(out.loss)) else ()


@invariant(
    "update.gradient_codes",
    source="van den Oord 2017 eq. 3; 001 eq. 9; theory T16",
    needs=("learning=gradient", "loss", "codes", "codebook"),
    parts=distances_only,
    corners=("on-code", "single", "tie", "parallel", "duplicates"),
    follows=("loss.gradients", "residual.sum"),
    mutants=("codes_mean_per_code",),
    hint="the codebook loss is one mean over all latents: each code gets Σ (e − z) of its own latents, unused ones 0.",
)
def gradient_codes(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """∂loss/∂e_k is 2w n_k (e_k − mean of its latents) with one w for all codes of all levels; unused codes get exactly 0."""
    found = measure(subject, case)
    if found is None or not found.pulled:
        return
    for level, side in enumerate(found.pulled):
        idle = int(side.got[side.reach == 0].any(1).sum())
        yield holds(not idle, "unused", f"{idle} codes of level {level} that no latent chose receive a gradient")
    readings = [weighed(subject, found, law)[1:] for law in laws(subject, found)]
    if trait(subject, "loss_coefficients") is None:
        readings = [list(_proportional(subject, found))]
    if readings:
        best = min(readings, key=lambda clauses: max((clause.margin or 0.0 for clause in clauses), default=0.0))
        yield from (replace(clause, label="weighted mean") for clause in best)


def _proportional(subject: Quantizer, found: Measured) -> Iterator[Clause]:
    """Gradients of all levels against one weight, the one that fits them best: nobody declares it."""
    pairs = [(side.got, side.want) for side in found.pulled]
    size = sum(float((want * want).sum()) for _, want in pairs)
    weight = sum(float((got * want).sum()) for got, want in pairs) / size if size else 0.0
    for side in found.pulled:
        allowed = 2 * roundoff(subject) * abs(weight) * (side.reach + norms(side.want)) + tiny(subject)
        yield within(norms(side.got - weight * side.want), allowed, "", f"|∂loss/∂e − {weight:.4g} Σ(e − z)|")


@invariant(
    "update.synchronized",
    source="001 eq. 20-21; theory T23",
    needs=("synchronized", "codes", "codebook", "metric=euclidean", "structure=plain", "deterministic"),
    corners=("on-code", "single", "unit", "duplicates", "parallel"),
    follows=("honesty.traits[synchronized]",),
    mutants=("sync_on_latents", "sync_unweighted"),
    hint="z + sg(q − z) + ν(q − sg q): the term is made of the code that was looked up, not of what the estimator returned.",
)
def synchronized(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The value is unchanged, and each code receives ν times the task gradient of its latents, no more."""
    claim = subject.claims.get("synchronized")
    nu = float(trait(subject, "synchronized"))
    loose = 0.0 if claim is not None else 1e-3  # found by probing, to four digits
    book, u = array(subject.codebooks()[0]), roundoff(subject)
    out = subject.forward(case.z, train=True, seed=case.seed)
    if out.codes is None or book.shape[1] != case.z.shape[1]:
        return
    k, g = out.codes[:, 0].cpu().numpy(), array(case.g)
    (got,) = subject.codebook_gradients((out.z_q.rows * case.g).sum())
    n = np.bincount(k, minlength=len(book)).astype(float)
    want, size = np.zeros_like(book), np.zeros(len(book))
    np.add.at(want, k, nu * g)
    np.add.at(size, k, nu * norms(g))
    allowed = ((n + 2) * max(u, unit_roundoff(got.dtype)) + loose) * size + tiny(subject)
    yield within(norms(array(got) - want), allowed, "codes", f"|∂⟨g, z_q⟩/∂e − νΣg|, ν = {nu:g}")
    q = book[k]
    if trait(subject, "estimator") in {"straight-through", "synchronized"}:  # rotation: `lookup.forward_is_code`
        error, reach = norms(array(out.z_q.rows) - q), norms(q) + norms(array(case.z))
        yield within(error, 4 * (1 + nu) * u * reach + tiny(subject), "value", "|z_q − e[k]|")
        back = array(subject.vjp(out, case.g))
        yield within(
            norms(back - g), 4 * u * norms(g) + tiny(subject), "latents", "|Jᵀg − g|: ν is the codes' share only"
        )


@invariant(
    "update.alternating",
    source="001 eq. 17-18, §5.4; theory T24",
    needs=("alternating", "codebook", "codes", "levels", "metric=euclidean", "structure=plain", "replacement!=batch"),
    corners=("single", "unit", "generic", "duplicates"),
    mutants=("inner_second_gradient", "inner_moves_twice", "inner_reaches_latents"),
    hint="detach the latents in the inner loss and the codes in the outer one, step once, and clear the inner gradients.",
)
def alternating(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Each phase moves its own parameters only: one step of the codes in a forward, down their objective, no second gradient."""
    before = subject.state()
    (book,) = (array(e) for e in subject.codebooks())
    out = traced(subject, case)
    after = subject.state()
    (moved,) = (array(e) for e in subject.codebooks())
    names = dict(subject.module.named_parameters())
    others = [
        name for name in names if not _holds(before[name], book) and not torch.equal(before[name], after[name])
    ]  # fmt: skip
    yield holds(not others, "other parameters", f"the inner step moved {', '.join(others[:3])}")
    yield holds(out.z.tensor.grad is None, "latents", "the inner backward reached the latents: detach them there")
    left = [name for name, p in names.items() if p.grad is not None and bool(p.grad.any())]
    yield holds(not left, "gradient left", f"the inner backward left a gradient on {', '.join(left[:3])}")
    if out.loss is not None and out.loss.requires_grad:
        second = any(bool(rows.any()) for rows in subject.codebook_gradients(out.loss))
        yield holds(not second, "second gradient", "the loss that is returned sends the codes a gradient, too")
    for view in views(out):
        yield from _inner_step(subject, view.z, book, moved)


def _holds(tensor: Tensor, book: Array) -> bool:
    """Whether a state tensor is the codebook."""
    return tensor.numel() == book.size and np.array_equal(array(tensor).reshape(book.shape), book)


def _inner_step(subject: Quantizer, z: Array, book: Array, moved: Array) -> Iterator[Clause]:
    """The move of the codes against the descent direction of Σ ½|z − e[k]|², k by the codebook before."""
    squares = np.square(z[:, None] - book).sum(2)
    k, nearest = squares.argmin(1), np.sort(squares, axis=1)
    reach = np.square(norms(z)[:, None] + norms(book)).max(1)
    if len(book) > 1 and (nearest[:, 1] - nearest[:, 0] <= 1e-5 * reach).any():
        return  # which code the layer took is not certain
    n = np.bincount(k, minlength=len(book)).astype(float)
    gradient, size = np.zeros_like(book), np.zeros(len(book))
    np.add.at(gradient, k, oracles.commitment_gradients(z, book[k], "A", 1.0).dq)
    np.add.at(size, k, norms(z) + norms(book[k]))
    step, used, u = moved - book, n > 0, roundoff(subject)
    yield holds(not step[~used].any(), "unused", f"{int(step[~used].any(1).sum())} codes without latents moved")
    blur = 8 * u * (np.abs(book) + np.abs(moved)).max()
    noise = (n[:, None] + 8) * u * size[:, None] + tiny(subject)
    uphill = (step * gradient > 0) & (np.abs(step) > blur) & (np.abs(gradient) > noise)
    yield holds(not uphill[used].any(), "objective", "codes move away from the mean of their latents")
    yield from _once(step, gradient, n, blur)


def _once(step: Array, gradient: Array, n: Array, blur: float) -> Iterator[Clause]:
    """One step of gradient descent has one rate for all codes (or, on a mean a code, a rate 1/n); two have not."""
    far = (n > 0) & (norms(gradient) > 1e-3 * norms(gradient).max(initial=0.0)) & (norms(gradient) > 0)
    if far.sum() < 2 or len(set(n[far])) < 2:
        return
    square = np.square(gradient[far]).sum(1)
    rate = -(step[far] * gradient[far]).sum(1) / square
    off = norms(step[far] + rate[:, None] * gradient[far])
    if (off > 1e-3 * norms(step[far]) + blur).any():
        return  # an optimiser that scales each entry: its steps say nothing about their number
    blurred = blur * step.shape[1] ** 0.5 / square**0.5
    spreads = [(np.ptp(value), 2 * (scale * blurred).max()) for value, scale in ((rate, 1.0), (rate * n[far], n[far]))]
    spread, allowed = min(spreads, key=lambda pair: pair[0] / max(pair[1], 1e-300))
    yield within(spread, allowed, "one step", "difference between the rates of codes with few and with many latents")
