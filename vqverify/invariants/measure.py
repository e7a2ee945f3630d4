"""What the rows share: the rounding model at a layer's effective precision, and views of a pass in code space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from vqverify.bounds import unit_roundoff
from vqverify.case import Case
from vqverify.quantizer import Level, Place, Quantized, Quantizer
from vqverify.symbolic import oracles

Array = NDArray[np.float64]
Rows = NDArray[np.intp]  # which latents, by index
Mask = NDArray[np.bool_]  # which latents, one flag each
GUARD = 1e-6  # the ε that layers customarily add to a norm, or clamp it at
SAFE = 1e-2  # a row is judged by a law only where its rounding bound is below this


def trait(subject: Quantizer, name: str, default: Any = None) -> Any:
    """Value of a trait, `default` where it is unknown."""
    finding = subject.traits.get(name)
    return default if finding is None or finding.value is None else finding.value


def roundoff(subject: Quantizer) -> float:
    """Unit roundoff u of the precision in which the layer computes.

    A float64 layer may hide a `.float()`, which `interface.precision` reports; then bounds are single precision's.
    A lower precision is never assumed: a float32 layer that computes in bfloat16 is what the bounds are there to find.
    """
    hidden = subject.domain.dtype == torch.float64 and "float32" in str(trait(subject, "effective_precision", ""))
    return unit_roundoff(torch.float32 if hidden else subject.domain.dtype)


def kept_within(dtype: torch.dtype, size: Array, dim: int) -> Array:
    """What rounding to the dtype in which codes (K, D) of these norms are kept may change, in norm (K,)."""
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # the step of subnormal numbers
    return unit_roundoff(dtype) * size + 0.5 * np.sqrt(dim) * least


def stream(seed: int) -> torch.Generator:
    """Numbers that no layer was built with: torch.randn under a construction's seed would draw latents that are its codes."""
    return torch.Generator().manual_seed(0x5EED2000 + seed)


def scalars(out: Quantized) -> list[float]:
    """Every single number that the layer returned without a gradient, in order; NaN in the place of others."""
    leaves = [leaf for leaf in pytree.tree_leaves(out.raw) if isinstance(leaf, Tensor | float)]
    return [_number(leaf) for leaf in leaves]


def names(out: Quantized) -> list[str]:
    """What the layer calls the numbers of `scalars`, keys and fields from the outermost, in order."""
    leaves, _ = pytree.tree_flatten_with_path(out.raw)
    return [pytree.keystr(path) for path, leaf in leaves if isinstance(leaf, Tensor | float)]


def _number(leaf: Tensor | float) -> float:
    if isinstance(leaf, int | float):
        return leaf
    single = leaf.numel() == 1 and leaf.is_floating_point() and not leaf.requires_grad
    return float(leaf.detach().double()) if single else float("nan")


def array(rows: Tensor) -> Array:
    """Rows as float64 NumPy, detached."""
    return rows.detach().to("cpu", torch.float64).numpy()


def norms(rows: Array) -> Array:
    """Euclidean norm of each row, (N,)."""
    return np.linalg.norm(rows, axis=-1)


@dataclass(frozen=True)
class View:
    """One level of a pass as numbers: latents z, codes q = e[k] from before the pass, (N, Dc) float64 each."""

    index: int
    level: Level
    z: Array
    q: Array
    k: NDArray[np.int64]
    codebook: Array
    src: Place = "z_q"
    dst: Place = "z"

    @property
    def value(self) -> Array:
        """What the layer put in place of q."""
        return array(self.level.q_c.rows)


def views(out: Quantized) -> Iterator[View]:
    """Levels of a traced pass whose latents are known; dropped latents (code −1) are the caller's to leave out."""
    for index, (level, table) in enumerate(zip(out.levels, out.codebook, strict=False)):
        if level.z_c is None or out.codes is None:
            continue
        k = out.codes[:, index].cpu().numpy()
        book = array(table)
        z, q = array(level.z_c.rows), book[np.clip(k, 0, len(book) - 1)]
        yield View(index, level, z, q, k, book, ("q_c", index), ("z_c", index))


def paths(subject: Quantizer, out: Quantized) -> list[View]:
    """Where an estimator acts: at each level, or around a stack whose levels carry no gradient (T34)."""
    found = list(views(out))
    if len(found) < 2 or any(_carries(subject, out, view) for view in found):
        return found
    total = sum((view.q for view in found), start=np.zeros_like(found[0].q))
    kept = np.where((np.stack([view.k for view in found]) >= 0).all(0), found[0].k, -1)
    whole = View(0, Level(out.z, out.z_q), array(out.z.rows), total, kept, found[0].codebook, "z_q", "z")
    return [whole] if whole.z.shape == total.shape and _carries(subject, out, whole) else found


def _carries(subject: Quantizer, out: Quantized, view: View) -> bool:
    rows = view.level.q_c.rows
    return bool(subject.vjp(out, torch.ones_like(rows), view.src, view.dst).any())


def traced(subject: Quantizer, case: Case, *, train: bool = True) -> Quantized:
    """The pass under test, recorded."""
    return subject.forward(case.z, train=train, seed=case.seed, trace=True)


def sigma(z: Array, q: Array) -> Array:
    """|ẑ + q̂| a row, (N,): 2 cos(θ/2), 0 for antiparallel pairs; 0 where a norm is 0."""
    a, b = norms(z), norms(q)
    fine = (a > 0) & (b > 0)
    out = np.zeros(len(z))
    out[fine] = norms(z[fine] / a[fine, None] + q[fine] / b[fine, None])
    return out


def rotation_law_bound(z: Array, q: Array, u: float) -> Array:
    """Relative error that any sensible implementation of the rotation keeps to; inf where none is claimed.

    B₁ of T5, plus what a denominator 1 + cos θ costs (4(2d+5)u/σ²), plus the customary ε in the norms
    (5ε/|e|, amplified by 1/(1 + cos θ)). The row `rotation.accuracy` asks for B₁ alone.
    """
    d = z.shape[1]
    s = sigma(z, q)
    least = np.minimum(norms(z), norms(q))
    out = np.full(len(z), np.inf)
    fine = (s > 1e-3) & (least > 1e-3) & (np.maximum(norms(z), norms(q)) < 1e15)
    out[fine] = (
        oracles.bound_b1(d, s[fine], u) + 4 * (2 * d + 5) * u / s[fine] ** 2 + 10 * GUARD / least[fine] / s[fine] ** 2
    )
    return out


def tiny(subject: Quantizer) -> float:
    """Smallest normal number of the layer's dtype: underflow to it is not an error."""
    return torch.finfo(subject.domain.dtype).tiny
