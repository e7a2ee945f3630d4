"""Lookups whose cells do not move with the codes, whose ties depend on the batch, and one that trusts half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer, ImageLayer


class BiasedByIndex(DictLayer):
    """A small ramp on the distances, "to make argmin deterministic": early codes win more than ties."""

    def search(self, z: Tensor) -> Tensor:
        """Nearest, with a handicap for late codes."""
        d = (z[..., None, :] - self.codes_).square().sum(-1)
        return (d + 0.01 * torch.arange(len(self.codes_))).argmin(-1)


class RoundsDistances(EmaLayer):
    """Distances rounded to two decimals, "to make ties stable": the unit of the data matters."""

    def lookup(self, flat: Tensor) -> Tensor:
        """First of the codes whose distances agree in two decimals."""
        return torch.cdist(flat, self.table).mul(100).round().argmin(1)


class TiesByChunk(ImageLayer):
    """Codes searched in chunks whose size depends on the batch, merged with ≤: the last of equal distances wins."""

    def choose(self, flat: Tensor) -> Tensor:
        """Index of a nearest code."""
        step = max(1, 256 // max(1, len(flat)))
        best, index = flat.new_full((len(flat),), float("inf")), torch.zeros(len(flat), dtype=torch.long)
        for start, part in enumerate(self.distances(flat).split(step, dim=1)):
            value, local = part.min(1)
            closer = value <= best
            best, index = torch.where(closer, value, best), torch.where(closer, local + start * step, index)
        return index


class TiesFlipInEval(EmaLayer):
    """argmin in train, and in eval the last of a sorted list of similarities."""

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of a nearest code."""
        d = torch.cdist(flat, self.table)
        return d.argmin(1) if self.training else (-d).sort(dim=1, stable=True).indices[:, -1]


class OptionalHalf(nn.Module):
    """(…, D), Parameter codebook, a flag for distances of half-precision data that are compared in full. The control."""

    def __init__(self, dim: int, codebook_size: int, half_precision_lookup: bool = False) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(codebook_size, dim))
        self.half_precision_lookup = half_precision_lookup

    def in_half(self, z: Tensor) -> Tensor:
        """Distances (N, K) of the rounded data, in the precision of z."""
        a, b = z.bfloat16().to(z), self.codes.bfloat16().to(z)
        return (a[:, None] - b[None]).square().sum(-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (…, D) to (z_q, codes, loss)."""
        flat = z.reshape(-1, z.shape[-1])
        full = (flat[:, None] - self.codes[None]).square().sum(-1)
        codes = (self.in_half(flat) if self.half_precision_lookup else full).argmin(1)
        q = F.embedding(codes, self.codes)
        loss = F.mse_loss(q, flat.detach()) + 0.25 * F.mse_loss(flat, q.detach())
        return (flat + (q - flat).detach()).reshape(z.shape), codes.reshape(z.shape[:-1]), loss


class HalfOnTrust(OptionalHalf):
    """The whole expanded distance in half precision, without a second look at what the margin leaves open."""

    def in_half(self, z: Tensor) -> Tensor:
        """|z|² − 2z·c + |c|² in bfloat16."""
        a, b = z.bfloat16(), self.codes.bfloat16()
        return a.square().sum(1, keepdim=True) - 2 * a @ b.t() + b.square().sum(1)


HERE = "vqverify.mutants.lookup_cells"
SIZES = {"dim": 4, "codebook_size": 8}
IMAGE = {"embedding_dim": 4, "num_embeddings": 8}
MUTANTS = (
    Mutant(
        "lookup_biased_by_index",
        f"{HERE}:BiasedByIndex",
        ("lookup.equivariance", "lookup.nearest"),
        "a ramp on the distances",
        SIZES,
        "systematic: a tie-break that breaks more than ties; theory T27",
    ),
    Mutant(
        "lookup_rounds_distances",
        f"{HERE}:RoundsDistances",
        ("lookup.equivariance", "lookup.nearest"),
        "distances rounded to two decimals",
        SIZES,
        "systematic: an absolute tolerance; theory T27",
    ),
    Mutant(
        "ties_by_chunk",
        f"{HERE}:TiesByChunk",
        ("lookup.tie_stable",),
        "chunks merged with ≤",
        IMAGE,
        "theory T28: unstable merges",
    ),
    Mutant(
        "ties_flip_in_eval",
        f"{HERE}:TiesFlipInEval",
        ("lookup.tie_stable",),
        "the last of equal distances in eval",
        SIZES,
        "systematic: order of operations",
    ),
    Mutant(
        "lower_precision_on_trust",
        f"{HERE}:HalfOnTrust",
        ("lookup.lower_precision",),
        "sums in bfloat16 behind a flag",
        SIZES,
        "001 A.1, no imprecision; theory T29",
    ),
)
