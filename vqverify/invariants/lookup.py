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
    follows=("update.uses_old_codes",),
    source="000 §4.1; theory T14, T5",
    needs=("codes", "codebook", "estimator!=softmax|noise|other"),
    state="both",
    parts=both_modes,
    mutants=("rotation_forward_unscaled", "stale_code", "quantise_after_update", "codes_off_by_one"),
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
    """A codebook in the latents' own space and one code a latent, and nothing in the pass that comes near e[k]."""
    z, value = array(out.z.rows), array(out.z_q.rows)
    if out.codes is None or out.codes.shape[1] != 1 or len(out.codebook) != 1 or out.codebook[0].shape[1] != z.shape[1]:
        return
    if trait(subject, "structure") not in {"plain", None} or trait(subject, "estimator") not in {
        "straight-through",
        "none",
    }:
        return
    k, book = out.codes[:, 0].cpu().numpy(), array(out.codebook[0])
    kept = (k >= 0) & (k < len(book))
    q = book[np.clip(k, 0, len(book) - 1)]
    bound = 4 * u * (norms(q) + norms(q - z)) + tiny(subject)
    if kept.any():
        yield within(
            norms(value - q)[kept], bound[kept], "forward", "|z_q − e[k]|: the codes do not name what was returned"
        )


def squared_distances(z: Array, book: Array) -> Array:
    """(N, K) squared distances by direct differences in float64, in chunks."""
    out = np.empty((len(z), len(book)))
    step = max(1, 2**21 // max(1, book.size))
    for start in range(0, len(z), step):
        out[start : start + step] = ((z[start : start + step, None] - book[None]) ** 2).sum(-1)
    return out


@invariant(
    "lookup.nearest",
    source="001 §2; theory T28",
    needs=("levels", "codebook", "deterministic", "metric=euclidean|cosine|dot"),
    state="both",
    mutants=("argmax_lookup", "wrong_metric", "lookup_in_half", "lookup_ignores_norms", "cosine_by_distance"),
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
    """The metric whose law holds: an inner product of codes of any norm is a choice only where it is declared."""
    finding = subject.traits["metric"]
    return "euclidean" if finding.value == "dot" and finding.origin == "identified" else str(finding.value)


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
    """Far from the origin, too, the chosen code is nearest within the bound of direct differences."""
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
    z = (torch.randn(512, d, generator=generator) * spread + shift).to(subject.domain.dtype)
    for view in views(subject.forward(z, train=True, seed=case.seed, trace=True)):
        distance = squared_distances(view.z, view.codebook)
        rows = np.arange(len(view.z))
        regret = distance[rows, view.k] - distance.min(1)
        bound = (d + 4) * u * (distance[rows, view.k] + distance.min(1)) + 1e-8
        yield within(
            regret, bound, "regret", "excess squared distance of the chosen code, codes 1000 spreads off centre"
        )


@invariant(
    "lookup.codes_are_fixed_points",
    follows=("lookup.nearest",),
    source="theory T27",
    corners=("single",),
    needs=("codes", "codebook", "levels", "deterministic", "structure=plain", "metric=euclidean|cosine"),
    mutants=("argmax_lookup", "wrong_metric"),
    hint="a code put through the quantizer must come back: check the space in which distances are taken.",
)
def codes_are_fixed_points(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Quantising a code returns it (or a duplicate of it)."""
    table = subject.codebooks()[0]
    if table.shape[1] != subject.domain.dim:
        return
    u = roundoff(subject)
    count = max(subject.domain.min_n, min(len(table), 64))
    z = table[torch.arange(count) % len(table)].to(subject.domain.dtype)
    for view in views(subject.forward(z, train=False, seed=case.seed, trace=True)):
        want = array(table)[np.arange(count) % len(table)]
        got = array(table)[view.k]
        if trait(subject, "metric") == "cosine":
            want, got = (x / np.maximum(norms(x)[:, None], 1e-12) for x in (want, got))
        d = want.shape[1]
        reach = np.sqrt(2 * (d + 4) * u) * (norms(want) + norms(got)) + 1e-4
        yield within(norms(got - want), reach, "fixed point", "distance between a code and the code chosen for it")


@invariant(
    "lookup.discrete",
    source="definition of a quantizer",
    needs=("!codes", "!codebook", "estimator!=noise"),
    corners=("single",),
    mutants=("rounding_left_out",),
    hint="nothing was rounded or looked up: the bound is there, and the round is not.",
)
def discrete(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A layer without codes quantises all the same: most small moves of a latent leave z_q where it is."""
    if len(case.z) < 8:
        return
    z = case.z / case.z.abs().amax(1, keepdim=True).clamp_min(1e-6)
    moved = z * (1 + 2.0**-12)
    a, b = (array(subject.forward(x, train=False, seed=case.seed, grad=False).z_q.rows) for x in (z, moved))
    alive = np.any(array(z) != 0, axis=1)
    still = np.all(np.abs(a - b) <= 16 * roundoff(subject) * np.maximum(np.abs(a), 1), axis=1)
    if alive.sum() >= 8:
        share = still[alive].mean()
        yield holds(
            share >= 0.5, "discrete", f"z_q of {1 - share:.0%} of the latents moves with a step of 2⁻¹² of the latent"
        )


@invariant(
    "lookup.star_shaped",
    follows=("lookup.nearest", "interface.eval_deterministic"),
    source="theory T27 (cells are convex)",
    corners=("single", "unit"),
    needs=("codes", "codebook", "deterministic", "structure=plain", "metric=euclidean", "levels"),
    mutants=("argmax_lookup",),
    hint="cells of a nearest-code lookup are convex: noise, argmax or another metric breaks this without any oracle.",
)
def star_shaped(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Moving a latent half-way towards its own code never changes the code, up to ties."""
    u = roundoff(subject)
    first = next(views(traced(subject, case, train=False)), None)
    if first is None or first.z.shape[1] != subject.domain.dim:
        return
    moved = torch.from_numpy((first.z + first.q) / 2).to(subject.domain.dtype)
    out = subject.forward(moved, train=False, seed=case.seed)
    if out.codes is None:
        return
    z, book = array(moved), first.codebook
    k = out.codes[:, 0].cpu().numpy()
    # |z − c₁|² − |z − c₂|² is affine in z and not positive at c₁: half-way it is at most half of what T28 allows at z
    excess = ((z - book[k]) ** 2).sum(1) - ((z - book[first.k]) ** 2).sum(1)
    reach = (norms(first.z) + norms(z) + norms(book).max()) ** 2 * (2 * len(z[0]) + 8) * u + 2e-8
    yield within(np.where(k != first.k, excess, 0.0), reach, "cell", "a latent left its cell on the way to its code")


@invariant(
    "lookup.code_determines",
    source="definition of a quantizer",
    needs=("codes", "estimator!=softmax|noise|other"),
    parts=both_modes,
    mutants=("noise_after_index", "soft_mixture"),
    state="both",
    hint="everything after the index must be a function of the index: no noise, no mixture, and all levels in the index.",
)
def code_determines(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Within one call, latents with equal codes have equal z_q, up to the rounding of the estimator."""
    if len(case.z) < 2:
        return
    out = traced(subject, case, train=case.part == "train")
    if out.codes is None:
        return
    _, group = np.unique(out.codes.cpu().numpy(), axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    same = np.diff(group.ravel()[order]) == 0
    allowed = _spread(subject, case, out)
    a, b = order[:-1][same], order[1:][same]
    keep = np.isfinite(allowed[a] + allowed[b])
    if keep.any():
        rows = array(out.z_q.rows)
        error = norms(rows[a] - rows[b])[keep]
        yield within(
            error, (allowed[a] + allowed[b])[keep], "same code", "distance between z_q of latents with equal codes"
        )


def _spread(subject: Quantizer, case: Case, out: Quantized) -> Array:
    """How far z_q of a latent may be from its code by rounding, (N,): the levels' forwards, carried to the output."""
    u = roundoff(subject)
    found = list(views(out))
    d = subject.domain.dim
    if found and len(found) == out.codes.shape[1]:  # type: ignore[union-attr]
        carried = sum((forward_bound(subject, view, u) for view in found), start=np.zeros(len(case.z)))
        size = sum((norms(view.q) + norms(view.z) for view in found), start=np.zeros(len(case.z)))
        return _gain(subject) * (carried + (d + 8) * u * size)
    # no levels in sight: codes of a bounded grid, passed straight through, z + sg(q − z), and a projection
    scale = norms(array(case.z)) + np.sqrt(d) * max(1.0, *(float(norms(e).max()) for e in _books(out)))
    return _gain(subject) * 8 * (d + 8) * u * scale


def _books(out: Quantized) -> list[Array]:
    return [array(book) for book in out.codebook] or [np.ones((1, 1))] * 2


def decoders(subject: Quantizer) -> tuple[str, ...]:
    """Public decode methods that were found: a case each."""
    return subject.decoders


@invariant(
    "lookup.decode",
    source="T34, T14; definition of a decoder of codes",
    needs=("codes", "decode"),
    parts=decoders,
    state="both",
    corners=("single", "on-code", "unit"),
    mutants=("decode_transposed", "decode_scaled"),
    hint="decode must undo layout and projection in the same order as forward, for every level.",
)
def decode(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """What decode gives for codes is the z_q that eval returned with these codes, for each public decode method."""
    out = subject.forward(case.z, train=False, seed=case.seed)
    if out.codes is None or case.part is None:
        return
    u = roundoff(subject)
    want = array(out.z_q.rows)
    got = array(subject.decode(out.codes, case.part))
    if got.shape != want.shape:
        yield holds(condition=False, label="shape", message=f"{case.part} gives {got.shape}, forward {want.shape}")
        return
    levels = out.codes.shape[1]
    books = subject.codebooks()
    size = sum(float(norms(array(book)).max(initial=0)) for book in books) + norms(want).max(initial=1.0)
    gain = _gain(subject)
    bound = (want.shape[1] + 8 + 2 * levels) * 4 * u * (size * gain + norms(want) + norms(array(case.z)) * 2)
    yield within(norms(got - want), bound, "decode", f"|{case.part}(codes) − z_q|")


def _gain(subject: Quantizer) -> float:
    """Largest factor that a linear map of the module may apply to rounding errors: product of spectral norms above 1."""
    factor = 1.0
    for tensor in subject.module.parameters():
        if tensor.ndim == 2 and min(tensor.shape) > 0 and max(tensor.shape) <= 4096:
            factor *= (
                max(1.0, float(torch.linalg.matrix_norm(tensor.detach().float(), ord=2)))
                if tensor.shape[0] <= 512
                else 1.0
            )
    return min(factor, 1e3)
