"""Groups that share a latent, and codes that are signs (theory T35, T37)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.loss_entropy import entropies, entropy_bounds
from vqverify.invariants.measure import array, roundoff, trait
from vqverify.quantizer import Quantizer

MOST_BITS = 12  # sign patterns that are tried one by one


def _modes(_: Quantizer) -> tuple[str, ...]:
    return ("train", "eval")


def _other(z: Tensor, part: slice) -> Tensor:
    """The same latents with one slice replaced by another latent's, larger."""
    changed = z.clone()
    changed[:, part] = 1 - 2 * z[:, part].roll(1, 0)
    return changed


@invariant(
    "product.independent",
    source="Jégou 2011; theory T35",
    needs=("structure=grouped", "codes", "deterministic"),
    parts=_modes,
    corners=("single", "unit"),
    mutants=("groups_normalised_together", "groups_averaged_together"),
    hint="reshape to (…, G, D/G) before any mean, norm or count, and keep the group axis in every sum of the update.",
)
def independent(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Groups quantise independently: changing one slice changes its own codes, part of z_q and codebook alone.

    Margin: what a group computes from the same numbers is the same: the margin is 0 but for products cut into
    other blocks.
    """
    train = case.part == "train"
    out = subject.forward(case.z, train=train, seed=case.seed)
    after = subject.codebooks()
    assert out.codes is not None
    groups, dim = out.codes.shape[1], case.z.shape[1]
    if groups < 2 or dim % groups:
        return
    shared = len(after) < groups or any(
        torch.equal(a, b) for i, a in enumerate(after) for b in after[:i] if a.shape == b.shape
    )
    width = dim // groups
    for group in {0, groups - 1}:
        part = slice(group * width, (group + 1) * width)
        prepare(subject, case)
        again = subject.forward(_other(case.z, part), train=train, seed=case.seed)
        assert again.codes is not None
        rest = [column for column in range(groups) if column != group]
        same = torch.equal(out.codes[:, rest], again.codes[:, rest])
        yield holds(same, "codes", f"codes of other groups change with the slice of group {group}")
        outside = np.ones(dim, bool)
        outside[part] = False
        a, b = array(out.z_q.rows)[:, outside], array(again.z_q.rows)[:, outside]
        scale = np.abs(array(case.z)).max() + max((float(book.abs().max()) for book in after), default=0.0)
        if same:
            yield within(
                a - b,
                16 * roundoff(subject) * scale,
                "value",
                f"z_q of other groups changes with the slice of group {group}",
            )
        if train and same and not shared and trait(subject, "replacement", default="none") == "none":
            moved = [i for i in rest if not torch.equal(after[i], subject.codebooks()[i])]
            yield holds(not moved, "update", f"the codebook of group {moved} moves with the slice of group {group}")


def _sign_parts(subject: Quantizer) -> tuple[str, ...]:
    return ("train", "eval", "entropy") if entropies(subject) else ("train", "eval")


@invariant(
    "lfq.sign",
    source="Yu 2024 (LFQ) eq. 3-4; theory T37",
    needs=("structure=sign", "codes"),
    parts=_sign_parts,
    mode="table",
    corners=("zero", "single", "unit", "generic"),
    mutants=("sign_of_zero", "sign_bits_int8", "sign_bit_lost", "entropy_summed"),
    hint="torch.where(z > 0, 1, −1), since torch.sign(0) is 0; the index is Σ 2ⁱ[zᵢ > 0] in int64.",
)
def sign(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """z_q holds the signs, at 0 too, and the index their bits: a bijection onto [0, 2ᴰ), a power of two each.

    Its entropy terms lie in their bounds.
    """
    if case.part == "entropy":
        yield from entropy_bounds(subject, case)
        return
    train, dim = case.part == "train", subject.domain.dim
    out = subject.forward(torch.cat([case.z, torch.zeros_like(case.z[:1])]), train=train, seed=case.seed)
    assert out.codes is not None
    z_q, z = array(out.z_q.rows), np.concatenate([array(case.z), np.zeros((1, dim))])
    size = np.abs(_bits(subject, dim, train=train)[0]).max()
    yield within(
        np.abs(z_q) - size,
        16 * roundoff(subject) * max(size, np.abs(z).max()),
        "magnitude",
        "|z_q| of a coordinate − the level",
    )
    yield holds((z_q * z >= 0).all(), "sign", "a coordinate of z_q has the other sign than its latent")
    values, codes, patterns = _bits(subject, dim, train=train)
    del values
    low, high = int(codes.min()), int(codes.max())
    yield holds(
        low >= 0 and (dim > 62 or high < 2**dim), "range", f"codes from {low} to {high}, expected within [0, 2^{dim})"
    )
    yield holds(
        len(np.unique(codes)) == len(patterns),
        "collision",
        f"{len(patterns)} sign patterns have {len(np.unique(codes))} codes",
    )
    base = int(codes[~patterns.any(1)][0])
    steps = np.array([int(codes[(patterns.sum(1) == 1) & patterns[:, i]][0]) - base for i in range(dim)])
    ordered = sorted(abs(int(step)) for step in steps) == [2**i for i in range(dim)]
    yield holds(ordered, "bits", f"one sign moves the code by {steps[:8].tolist()}, expected a power of two each")


def _bits(subject: Quantizer, dim: int, *, train: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z_q and codes of sign patterns: all of them, or each single sign and random ones."""
    if dim <= MOST_BITS:
        patterns = (np.arange(2**dim)[:, None] >> np.arange(dim)) & 1 == 1
    else:
        drawn = np.random.default_rng(0).integers(0, 2, (256, dim)) == 1
        patterns = np.unique(np.concatenate([np.zeros((1, dim), bool), np.eye(dim, dtype=bool), drawn]), axis=0)
    subject.restore()
    z = torch.from_numpy(np.where(patterns, 0.75, -0.75)).to(subject.domain.dtype)
    out = subject.forward(z, train=train, grad=False)
    assert out.codes is not None
    return array(out.z_q.rows), out.codes[:, 0].cpu().numpy(), patterns
