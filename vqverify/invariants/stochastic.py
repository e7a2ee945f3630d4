"""Layers that draw their codes: a draw is one code, and what it is in the limit (theory T30)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, Violation, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.lookup import forward_bound, soft_by_choice
from vqverify.invariants.measure import View, array, norms, roundoff, stream, trait, views
from vqverify.invariants.relaxation import code_axis_last, relaxed_weights, softmaxes
from vqverify.quantizer import Quantized, Quantizer

TEMPERATURES = ("temperature", "temp", "tau", "sample_codebook_temp")


def _modes(subject: Quantizer) -> tuple[str, ...]:
    """Modes in which a hard code is owed: not where a mixture or a noisy value is what the layer says it returns."""
    claim = subject.claims.get("estimator")
    if claim is not None and claim.value == "softmax":
        return ()
    return ("eval",) if trait(subject, "estimator") == "noise" or soft_by_choice(subject) else ("train", "eval")


@invariant(
    "stochastic.hard",
    source="Jang 2017 §2.2; theory T30",
    needs=("codes", "codebook", "structure!=scalar|sign"),
    parts=_modes,
    corners=("tie", "single", "on-code", "unit"),
    mutants=("soft_mixture", "mixture_in_eval", "gumbel_left_soft"),
    hint="softmax(−d) @ codes is a mixture: take hard + soft − soft.detach(), or index the codebook; say hard=True.",
)
def hard(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Where codes are returned, z_q is one code of the codebook and no mixture of several."""
    train, u = case.part == "train", roundoff(subject)
    out = subject.forward(case.z, train=train, seed=case.seed, trace=True)
    located = out.codes is not None and len(out.levels) == len(out.codebook) == out.codes.shape[1]
    clauses = list(_codes_of(subject, out, u)) if located else []
    if located and all(clause.holds for clause in clauses):
        yield from clauses
        return
    # no row of the codebook that was read, or none was found: a mixture is then what varies within a cell
    within_cell = list(_piecewise_constant(subject, case, u, train=train))
    yield from clauses if clauses and not all(clause.holds for clause in within_cell) else within_cell


def _codes_of(subject: Quantizer, out: Quantized, u: float) -> Iterator[Clause]:
    """Each level's code against its row of the codebook."""
    assert out.codes is not None
    for index, (level, table) in enumerate(zip(out.levels, out.codebook, strict=True)):
        k, book, value = out.codes[:, index].cpu().numpy(), array(table), array(level.q_c.rows)
        z = value if level.z_c is None else array(level.z_c.rows)  # without an estimator, q is the code itself
        view = View(index, level, z, book[np.clip(k, 0, len(book) - 1)], k, book)
        bound = forward_bound(subject, view, u)
        keep = np.isfinite(bound) & (view.k >= 0)
        if keep.any():
            yield within(norms(value - view.q)[keep], bound[keep], "mixture", f"|z_q − e[k]| at level {index}")


def _piecewise_constant(subject: Quantizer, case: Case, u: float, *, train: bool) -> Iterator[Clause]:
    """Code space was not located: latents a small step apart that share their codes share z_q."""
    subject.restore()
    if case.codebook is not None:
        subject.set_codebook(case.codebook)
    books = subject.codebooks()
    step = 2.0**-6 * (case.z + case.z.abs().mean() + 2.0**-6)
    out = subject.forward(torch.cat([case.z, case.z + step]), train=train, seed=case.seed)
    if out.codes is None:
        return
    n = len(case.z)
    rows, codes = array(out.z_q.rows), out.codes.cpu().numpy()
    same = (codes[:n] == codes[n:]).all(1) & (codes[:n] >= 0).all(1)
    if same.any():
        size = (
            max(float(norms(array(book)).max()) * len(book) for book in books)
            + norms(array(case.z)).max()
            + norms(rows).max()
        )
        error = norms(rows[:n] - rows[n:])[same]
        yield within(error, 64 * u * size, "mixture", "z_q of two latents with the same codes differs")


def temperature_argument(subject: Quantizer) -> str | None:
    """Name of the constructor's temperature, if it has one."""
    return next((name for name in TEMPERATURES if name in subject.arguments), None)


def _limits(subject: Quantizer) -> tuple[str, ...]:
    drawn = trait(subject, "estimator") not in {"gumbel", "softmax"} and trait(subject, "metric") == "euclidean"
    cold = temperature_argument(subject) and drawn
    return ("seed", "cold") if cold else ("seed",)


@invariant(
    "stochastic.limits",
    source="theory T30",
    mode="table",
    needs=("codes", "codebook", "stochastic=train|eval|both"),
    parts=_limits,
    corners=("single", "unit", "on-code"),
    mutants=("temperature_inverted", "own_generator"),
    hint="logits are divided by T; noise comes from the global generators, or from one that is part of the state.",
)
def limits(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """As T → 0 the code drawn is the nearest one; a seed gives the same sample twice."""
    if case.part == "seed":
        for train in (True, False):
            outs: list[Quantized] = []
            for _ in range(2):
                subject.restore()
                outs.append(subject.forward(case.z, train=train, seed=case.seed))
            same = (
                torch.equal(outs[0].codes, outs[1].codes)
                if outs[0].codes is not None and outs[1].codes is not None
                else True
            )
            yield holds(
                same,
                "seed",
                f"two {'train' if train else 'eval'} passes with one seed from one state draw different codes",
            )
        return
    name = temperature_argument(subject)
    assert name is not None
    cold = 2.0**-20
    try:
        twin = subject.build({name: cold})
    except Violation:
        return  # so cold is not accepted, and said so
    twin.restore()
    out = twin.forward(case.z, train=True, seed=case.seed, trace=True)
    for view in views(out):
        distances = norms(view.z[:, None] - view.codebook[None])
        best = np.sort(distances, axis=1)
        # d and d² both: a gap of 60 T leaves K·e⁻⁶⁰ to any other code
        gap = best[:, 1] - best[:, 0] if best.shape[1] > 1 else np.full(len(best), np.inf)
        reach = norms(view.z) + norms(view.codebook).max(initial=0.0)
        clear = (
            np.minimum(gap, gap * best[:, min(1, best.shape[1] - 1)]) > 60 * cold + 64 * roundoff(twin) * (1 + reach**2)
        ) & (view.k >= 0)
        wrong = clear & (view.k != distances.argmin(1))
        if clear.any():
            yield holds(
                not wrong.any(), "cold", f"at {name}={cold:g}, {wrong.sum()} of {clear.sum()} codes are not the nearest"
            )


def _relaxed(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where the gradient of z_q runs through a softmax over the codes."""
    books = subject.codebooks()
    if len(books) != 1 or books[0].shape[1] != subject.domain.dim:
        return ()
    z = torch.randn(max(4, subject.domain.min_n), subject.domain.dim, generator=stream(0))
    out = subject.forward(z.to(subject.domain.dtype), train=True)
    return (None,) if any(True for _ in relaxed_weights(out, len(books[0]))) else ()


@invariant(
    "stochastic.st_value",
    source="Jang 2017 §2.2; theory T30",
    needs=("codes", "codebook"),
    state="both",
    parts=_relaxed,
    mutants=("gumbel_gradient_sign", "gumbel_gradient_scaled"),
    follows=("stochastic.hard",),
    corners=("single", "unit", "on-code"),
    hint="weights = hard + soft − soft.detach(); z_q = weights @ codes: value from hard, gradient from soft, unscaled.",
)
def st_value(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A straight-through sample carries the soft gradient: relaxed weights receive that of their mixture, g·eᵀ."""
    book = array(subject.codebooks()[0])
    out = subject.forward(case.z, train=True, seed=case.seed)
    found = softmaxes(out.z_q.tensor.grad_fn)
    node = next((n for n in found if code_axis_last(n, n._saved_result, len(book)) is not None), None)  # noqa: SLF001
    if node is None:
        return
    seen: list[Tensor] = []
    handle = node.register_prehook(lambda grads: seen.append(grads[0]))
    g = case.g + 1
    try:
        subject.vjp(out, g)
    finally:
        handle.remove()
    yield holds(bool(seen), "detached", "no gradient reaches the relaxed weights")
    rows = code_axis_last(node, seen[0], len(book)) if seen else None
    if rows is not None and len(rows) == len(g):
        want = array(g) @ book.T
        allowed = (book.shape[1] + 8) * roundoff(subject) * norms(array(g))[:, None] * norms(book)[None]
        yield within(array(rows) - want, allowed, "soft gradient", "|∂/∂y − g·eᵀ|")
