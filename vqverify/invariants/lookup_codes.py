"""What a code says: it determines its value, and decode gives that value back (theory T14, T34)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.lookup import MODES, forward_bound, soft_by_choice
from vqverify.invariants.measure import Array, array, norms, roundoff, traced, trait, views
from vqverify.quantizer import Quantized, Quantizer


def _modes(subject: Quantizer) -> tuple[str, ...]:
    return ("eval",) if soft_by_choice(subject) else MODES


@invariant(
    "lookup.code_determines",
    source="definition of a quantizer",
    needs=("codes", "estimator!=softmax|noise|other"),
    parts=_modes,
    mutants=("noise_after_index",),
    follows=("fsq.bijection", "lfq.sign"),
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
    allowed = _spread(subject, case, out, train=case.part == "train")
    a, b = order[:-1][same], order[1:][same]
    keep = np.isfinite(allowed[a] + allowed[b])
    if keep.any():
        rows = array(out.z_q.rows)
        error = norms(rows[a] - rows[b])[keep]
        yield within(
            error, (allowed[a] + allowed[b])[keep], "same code", "distance between z_q of latents with equal codes"
        )


def _spread(subject: Quantizer, case: Case, out: Quantized, *, train: bool) -> Array:
    """How far z_q of a latent may be from its code by rounding, (N,): the levels' forwards, carried to the output."""
    u = roundoff(subject)
    found = list(views(out))
    d = subject.domain.dim
    if found and len(found) == out.codes.shape[1]:  # type: ignore[union-attr]
        carried = sum((forward_bound(subject, view, u) for view in found), start=np.zeros(len(case.z)))
        size = sum((norms(view.q) + norms(view.z) for view in found), start=np.zeros(len(case.z)))
        return _gain(subject) * (carried + (d + 8) * u * size)
    if trait(subject, "estimator" if train else "estimator_in_eval") in {"rotation", None, "other"}:
        return np.full(len(case.z), np.inf)  # a rotation's rounding depends on the angle at each level
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
    mutants=("decode_transposed", "decode_scaled", "decode_unnormalised"),
    hint="decode must undo layout and projection in the same order as forward, for every level.",
)
def decode(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """What decode gives for codes is the z_q that eval returned with these codes, for each public decode method."""
    turned = trait(subject, "estimator_in_eval") in {"rotation", "other"}
    out = subject.forward(case.z, train=False, seed=case.seed, trace=turned)
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
    if turned:  # z_q is a code but for what the rotation of z may lose; none is claimed at z = 0
        bound = bound + _spread(subject, case, out, train=False)
    keep = np.isfinite(bound)
    if keep.any():
        yield within(norms(got - want)[keep], bound[keep], "decode", f"|{case.part}(codes) − z_q|")


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
