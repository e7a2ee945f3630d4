"""The forward pass: which code is chosen, and what stands in place of the latent (theory T14, T27, T28)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import (
    SAFE,
    Array,
    Mask,
    View,
    array,
    norms,
    rotation_law_bound,
    roundoff,
    tiny,
    traced,
    trait,
    views,
)
from vqverify.quantizer import Quantized, Quantizer

MODES = ("train", "eval")


def soft_by_choice(subject: Quantizer) -> bool:
    """Whether an argument says that training returns the mixtures themselves, as `F.gumbel_softmax(hard=False)` does."""
    relaxed = trait(subject, "estimator") in {"gumbel", "softmax"}
    return relaxed and any(subject.arguments.get(name) is False for name in ("hard", "straight_through"))


def both_modes(_: Quantizer) -> tuple[str, ...]:
    """Cases of a row that is checked in train and in eval."""
    return MODES


def forward_bound(subject: Quantizer, view: View, u: float) -> Array:
    """What the estimator's forward may add to a code by rounding, a row; inf where no law is claimed.

    Straight-through z + sg(q − z): two roundings, u(|q| + |q − z|) (T14). Rotation λRz: B₁|q| (T5). A soft
    one-hot p + sg(1 − p): each weight is off by u, and the codes are summed with them.
    """
    d = view.z.shape[1]
    largest = norms(view.codebook).max(initial=0.0)
    bound = 1.01 * u * (2 * norms(view.q) + norms(view.q - view.z)) + tiny(subject) * np.sqrt(d)
    family = trait(subject, "estimator")
    if family in {"rotation", None, "other"}:
        relative = rotation_law_bound(view.z, view.q, u)
        fine = relative < SAFE
        bound = np.where(fine, bound + norms(view.q) * np.where(fine, relative, 0.0), np.inf)
    if family in {"gumbel", "softmax", "sampled", None, "other"}:
        bound = bound + 4 * len(view.codebook) * u * largest
    return bound + 4 * u * largest * (trait(subject, "metric") == "cosine") * np.sqrt(d)


@invariant(
    "lookup.forward_is_code",
    follows=(
        "update.uses_old_codes",
        "interface.no_grad_same",
        "rotation.determinant",
    ),
    source="000 §4.1; theory T14, T5",
    needs=("codes", "codebook", "estimator!=softmax|noise|other"),
    state="both",
    parts=both_modes,
    mutants=(
        "rotation_forward_unscaled",
        "stale_code",
        "quantise_after_update",
    ),
    hint="the estimator must leave the value alone: q + J(z − sg z) does, and λRz does only with λ; the code comes from the "
    "codebook before the update.",
)
def forward_is_code(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Forward invariance: what the layer returns in place of a latent is its code e[k], up to the rounding of the estimator."""
    u = roundoff(subject)
    out = traced(subject, case, train=case.part == "train")
    if not out.levels:
        yield from _unexplained(subject, out, u)
    for view in views(out):
        bound = forward_bound(subject, view, u)
        keep = np.isfinite(bound) & (view.k >= 0)
        if keep.any():
            error = norms(view.value - view.q)[keep]
            yield within(error, bound[keep], "forward", f"|z_q − e[k]| at level {view.index}")


def _unexplained(subject: Quantizer, out: Quantized, u: float) -> Iterator[Clause]:
    """Codebooks in the latents' own space, and nothing in the pass that comes near e[k]."""
    z, value = array(out.z.rows), array(out.z_q.rows)
    if out.codes is None or out.codes.shape[1] != len(out.codebook):
        return
    if len(out.codebook) > 1:
        yield from _misnamed(out, z, value, u)
        return
    book = array(next(iter(out.codebook)))
    if book.shape[1] != z.shape[1]:
        return
    if trait(subject, "structure") not in {"plain", None} or trait(subject, "estimator") not in {
        "straight-through",
        "none",
    }:
        return
    k = out.codes[:, 0].cpu().numpy()
    kept = (k >= 0) & (k < len(book))
    q = book[np.clip(k, 0, len(book) - 1)]
    bound = 4 * u * (norms(q) + norms(q - z)) + tiny(subject)
    if kept.any():
        yield within(
            norms(value - q)[kept], bound[kept], "forward", "|z_q − e[k]|: the codes do not name what was returned"
        )


def _misnamed(out: Quantized, z: Array, value: Array, u: float) -> Iterator[Clause]:
    """Codes side by side, each a row of its own table, but not the row that the code names."""
    books = [array(book) for book in out.codebook]
    if out.codes is None or sum(book.shape[1] for book in books) != z.shape[1]:
        return
    ends = np.cumsum([book.shape[1] for book in books])[:-1]
    for level, (book, part, latents) in enumerate(
        zip(books, np.split(value, ends, 1), np.split(z, ends, 1), strict=True)
    ):
        k = out.codes[:, level].cpu().numpy()
        q = book[np.clip(k, 0, len(book) - 1)]
        bound = 4 * u * (norms(book).max() + norms(part) + norms(latents)) + np.finfo(np.float32).tiny
        own = np.sqrt(squared_distances(part, book).min(1)) <= bound  # a table in another space has no such rows
        if own.mean() > 0.9:
            kept = own & (k >= 0) & (k < len(book))
            message = f"|z_q − e[k]| in the slice of level {level}: its codes name other rows of the codebook"
            yield within(norms(part - q)[kept], bound[kept], "forward", message)


def squared_distances(z: Array, book: Array) -> Array:
    """(N, K) squared distances by direct differences in float64, in chunks."""
    out = np.empty((len(z), len(book)))
    step = max(1, 2**21 // max(1, book.size))
    for start in range(0, len(z), step):
        out[start : start + step] = ((z[start : start + step, None] - book[None]) ** 2).sum(-1)
    return out


@invariant(
    "lookup.nearest",
    follows=(
        "product.independent",
        "lookup.cosine_sphere",
        "interface.size_free",
    ),
    source="001 §2; theory T28",
    needs=("levels", "codebook", "deterministic", "metric=euclidean|cosine|dot"),
    state="both",
    mutants=(
        "argmax_lookup",
        "wrong_metric",
        "lookup_in_half",
        "lookup_ignores_norms",
        "cosine_by_distance",
        "squares_the_sum",
    ),
    hint="argmin of distances (or argmax of similarities), |c|² included, in the precision of the inputs.",
)
def nearest(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The chosen code is nearest: its excess over the nearest one is within what a backward-stable expanded evaluation may lose."""
    u = roundoff(subject)
    for view in views(traced(subject, case)):
        kept = view.k >= 0
        defined = _metric(subject) != "cosine" or norms(view.codebook).min(initial=1.0) > 1e-6
        if kept.any() and defined:  # a code of norm 0 has no direction
            yield _regret(subject, view, kept, u)


def _metric(subject: Quantizer) -> str:
    """The metric whose law holds: an inner product of codes of any norm is a choice only where it is declared.

    Or where gradients run through a softmax of the same products, as in index backpropagation.
    """
    finding = subject.traits["metric"]
    hidden = finding.origin == "identified" and trait(subject, "estimator") not in {"softmax", "gumbel"}
    return "euclidean" if finding.value == "dot" and hidden else str(finding.value)


def _regret(subject: Quantizer, view: View, kept: Mask, u: float) -> Clause:
    z, k, book = view.z[kept], view.k[kept], view.codebook
    d = z.shape[1]
    metric = _metric(subject)
    if not ((k >= 0) & (k < len(book))).all():
        return holds(
            condition=False, label="range", message=f"codes {k.min()}..{k.max()} for a codebook of {len(book)}"
        )
    if metric == "euclidean":
        distance = squared_distances(z, book)
        reach = (norms(z)[:, None] + norms(book)[None]) ** 2 * (d + 4) * u
        best = distance.argmin(1)
        rows = np.arange(len(z))
        regret = distance[rows, k] - distance[rows, best]
        # a root taken before the comparison rounds once more; a distance clamped at 1e-8 hides differences below it
        bound = reach[rows, k] + reach[rows, best] + 2 * u * distance[rows, k] + 1e-8 + tiny(subject)
        return within(regret, bound, "regret", f"excess squared distance of the chosen code at level {view.index}")
    scale = norms(z)[:, None] if metric == "cosine" else np.ones((len(z), 1))
    sizes = norms(book)[None] if metric == "cosine" else np.ones((1, len(book)))
    with np.errstate(invalid="ignore", divide="ignore"):
        similarity = np.nan_to_num(z @ book.T / scale / sizes)
    regret = similarity.max(1) - similarity[np.arange(len(z)), k]
    size = np.ones(len(z)) if metric == "cosine" else norms(z) * norms(book).max(initial=0)
    visible = norms(z) > 1e-3 if metric == "cosine" else np.ones(len(z), bool)
    return within(
        regret[visible],
        (4 * d + 24) * u * size[visible],
        "regret",
        f"similarity lost by the chosen code at level {view.index}",
    )


@invariant(
    "lookup.nearest_off_centre",
    kind="limit",
    mode="table",
    follows=("lookup.nearest",),
    source="theory T28; performance notes, section 2",
    needs=("levels", "codebook", "settable", "deterministic", "metric=euclidean"),
    corners=("off-centre",),
    mutants=("expanded_distance",),
    hint="|z|² − 2z·c + |c|² cancels far from the origin: subtract the mean of the codes first, or recompute close rows directly.",
)
def nearest_off_centre(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Far from the origin, too, the chosen code is nearest within the bound of direct differences.

    Margin: regret is exactly 0, and with it the margin, where the chosen code is the nearest one.
    """
    u = roundoff(subject)
    subject.restore()  # its own codes, spread as they were built
    own, *rest = subject.codebooks()
    d = own.shape[1]
    if d != subject.domain.dim or rest:
        return
    generator = torch.Generator().manual_seed(0xFA4 + case.seed)  # not the seed that the codebook was drawn with
    spread = own.std().clamp_min(1e-3)
    shift = 1000.0 * spread * torch.sign(torch.randn(d, generator=generator))
    subject.set_codebook([own + shift.to(own)])
    n = min(512, max(64, 2**24 // own.numel()))
    z = (torch.randn(n, d, generator=generator) * spread + shift).to(subject.domain.dtype)
    for view in views(subject.forward(z, train=True, seed=case.seed, trace=True)):
        distance = squared_distances(view.z, view.codebook)
        rows = np.arange(len(view.z))
        regret = distance[rows, view.k] - distance.min(1)
        bound = (d + 4) * u * (distance[rows, view.k] + distance.min(1)) + 1e-8
        yield within(
            regret, bound, "regret", "excess squared distance of the chosen code, codes 1000 spreads off centre"
        )


LOWER = ("half", "fp16", "bf16", "lower_precision", "low_precision", "reduced_precision", "divide_and_conquer")


def _lower_precision(subject: Quantizer) -> tuple[str, ...]:
    """Flags of the constructor that ask for a lookup in lower precision, given or not."""
    return tuple(
        name
        for name, value in subject.arguments.items()
        if isinstance(value, bool) and any(word in name.lower() for word in LOWER)
    )


@invariant(
    "lookup.lower_precision",
    follows=("lookup.nearest",),
    source="001 A.1; theory T29",
    needs=("codes", "codebook", "deterministic", "metric=euclidean", "levels"),
    parts=_lower_precision,
    corners=("zero", "on-code", "tie", "antiparallel", "single", "off-centre", "clustered", "parallel"),
    mutants=("lower_precision_on_trust",),
    hint="round latents and codes, not the sums: compare in full precision, and rank again what the margin leaves open.",
)
def lower_precision(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A lookup in lower precision loses no more distance than rounding its data to bfloat16 may: 2u(|z| + max|c|) and underflow."""
    assert case.part is not None
    twin = subject.build({case.part: True})
    if case.codebook is not None:
        twin.set_codebook(case.codebook)
    fp16 = any(word in case.part.lower() for word in ("half", "fp16")) and "bf16" not in case.part.lower()
    half = torch.finfo(torch.bfloat16)
    for view in views(twin.forward(case.z, train=False, seed=case.seed, trace=True)):
        book, kept = view.codebook, view.k >= 0
        largest = max(norms(book).max(initial=0.0), norms(view.z).max(initial=0.0))
        if not kept.any() or (fp16 and largest > 2.0**15):
            continue  # float16 ends at 65504
        d, u = book.shape[1], roundoff(subject)
        distance = np.sqrt(squared_distances(view.z, book))
        regret = (distance[np.arange(len(view.z)), view.k] - distance.min(1))[kept]
        size = (norms(view.z) + norms(book).max(initial=0.0))[kept]
        lost = half.eps * size + 4 * half.smallest_normal * half.eps * np.sqrt(d)
        # the rounded data are compared in full precision, expanded at worst (T28)
        bound = lost + np.sqrt(2 * (d + 3) * u) * size + 1e-4 * (size > 0) + tiny(subject)
        yield within(regret, bound, "regret", f"excess distance of the chosen code at level {view.index}")
