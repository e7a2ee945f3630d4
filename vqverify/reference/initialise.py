"""K-means: first codes from data, and repeated k-means (Łańcucki et al. 2020; Huh et al. 2023, section 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vqverify.reference import _checks
from vqverify.reference.codebooks import code_statistics
from vqverify.reference.lookup import directions, nearest_codes


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        codebook: centres (K, D) in the dtype of the data.
        counts: number of latents of each (K,), float32 at least; a centre without latents has 0.
        objective: Σ min |z - c|² before each update and at the end, float64; it never rises.
    """

    codebook: Tensor
    counts: Tensor
    objective: Tensor


@torch.no_grad()
def kmeans(
    z: Tensor,
    size: int,
    *,
    iterations: int = 10,
    metric: str = "euclidean",
    generator: torch.Generator | None = None,
) -> Clusters:
    """Run Lloyd's algorithm from distinct random rows of the data. **Stochastic**: draws one permutation.

    With fewer latents than codes every latent is a centre and the further centres repeat them in turn;
    ties go to the lowest index, so that a repetition gets no latents. A centre that loses its latents
    stays. With ``metric="cosine"`` latents are replaced by directions and centres by the directions of means;
    a centre whose latents cancel stays as well.

    Repeated k-means is ``layer.set_codebook(kmeans(z, layer.codebook_size).codebook)``, once an epoch.

    Args:
        z: latents (..., D), at least one.
        size: K, number of centres.
        iterations: updates of the centres; stops early when nothing moves.
        metric: ``"euclidean"`` or ``"cosine"``.
        generator: where the permutation is drawn from; the global generator if None.

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: on an argument out of range, no latents, or latents that are not finite or whose sum overflows.
    """
    _checks.latents("z", z, None)
    if not z.ndim or not z.shape[-1]:
        raise ValueError(f"z must be (..., D), D at least 1; its shape was {tuple(z.shape)}")
    _checks.positive_int("size", size)
    _checks.positive_int("iterations", iterations, at_least=0)
    cosine = _checks.choice("metric", metric, {"euclidean": False, "cosine": True})
    rows = z.detach().reshape(-1, z.shape[-1])
    if not len(rows):
        raise ValueError("z must hold at least one latent for k-means; it was empty")
    rows = directions(rows) if cosine else rows
    device = rows.device if generator is None else generator.device
    order = torch.randperm(len(rows), generator=generator, device=device).to(rows.device)
    centres = rows[order[torch.arange(size, device=rows.device) % len(rows)]].clone()
    objective: list[Tensor] = []
    counts = rows.new_zeros(size, dtype=torch.float32)
    for step in range(iterations + 1):
        codes = nearest_codes(rows, centres)
        objective.append((rows.double() - centres[codes].double()).square().sum())
        counts, sums = code_statistics(rows, codes, size)
        _checks.finite("the sum of the latents z of a centre", sums, learnt=True)
        if step == iterations:
            break
        means = (sums / counts.unsqueeze(1)).to(rows.dtype)
        # where directions cancel there is none: such a centre stays, like one without latents
        used = (counts > 0) & ((means != 0).any(1) | (not cosine))
        moved = torch.where(used.unsqueeze(1), directions(means) if cosine else means, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return Clusters(centres, counts, torch.stack(objective))


def initial_codes(name: str, size: int, dim: int) -> Tensor:
    """Return first codes (K, D): N(0, 1), or uniform in ±1/K; ``"kmeans"`` is normal until the first batch.

    Raises:
        ValueError: if the name is unknown.
    """
    span = _checks.choice("initialisation", name, {"normal": None, "uniform": 1 / size, "kmeans": None})
    return torch.randn(size, dim) if span is None else torch.empty(size, dim).uniform_(-span, span)
