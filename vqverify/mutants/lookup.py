"""Lookups that do not find the nearest code, and values that are not it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer, ImageLayer


class Argmax(EmaLayer):
    """argmax of distances: the farthest code."""

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of the farthest code."""
        return torch.cdist(flat, self.table).argmax(1)


class Manhattan(DictLayer):
    """Sum of absolute differences in place of squares, with a Euclidean loss."""

    def search(self, z: Tensor) -> Tensor:
        """Nearest in the wrong metric."""
        return (z[..., None, :] - self.codes_).abs().sum(-1).argmin(-1)


class HalfPrecision(EmaLayer):
    """Distances in bfloat16, to save memory, without a second look."""

    def lookup(self, flat: Tensor) -> Tensor:
        """Nearest up to two digits."""
        z, e = flat.bfloat16(), self.table.bfloat16()
        return (z[:, None] - e[None]).square().sum(-1).argmin(1)


class IgnoresNorms(ImageLayer):
    """|c|² left out of the expanded distance: the largest inner product wins."""

    def distances(self, flat: Tensor) -> Tensor:
        """−2 z·c alone."""
        return -2 * flat @ self.embedding.weight.t()


class SquaresTheSum(ImageLayer):
    """(Σc)² for Σc²: the square stands outside of the sum."""

    def distances(self, flat: Tensor) -> Tensor:
        """|z|² − 2z·c + (Σc)²."""
        e = self.embedding.weight
        return flat.square().sum(1, keepdim=True) - 2 * flat @ e.t() + e.sum(1).square()


class Expanded(ImageLayer):
    """Right, but not centred: |z|² − 2z·c + |c|² cancels off centre."""


class Noisy(EmaLayer):
    """Noise on the distances that was left on in eval."""

    def lookup(self, flat: Tensor) -> Tensor:
        """Nearest after a perturbation."""
        d = torch.cdist(flat, self.table)
        return (d + 0.5 * torch.rand_like(d)).argmin(1)


class NoiseAfterIndex(EmaLayer):
    """Noise added to the code after its index was returned."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """The code and some noise."""
        noisy = q + 0.05 * torch.randn_like(q)
        return z + (noisy - z).detach()


class SoftMixture(EmaLayer):
    """softmax(−d) @ codes in place of the nearest code."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to a mixture of codes."""
        flat = z.reshape(-1, z.shape[-1])
        weights = torch.softmax(-torch.cdist(flat, self.table), dim=1)
        mixed = weights @ self.table
        loss = self.commitment_weight * F.mse_loss(flat, mixed.detach())
        return mixed.reshape(z.shape), weights.argmax(1).reshape(z.shape[:-1]), loss


class StaleCode(EmaLayer):
    """Codes are looked up in a table that is copied at the start and never refreshed."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.register_buffer("cached", self.table.clone())

    cached: Tensor

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Value from the stale table."""
        del q
        stale = self.cached[self.lookup(z.detach())]
        return z + (stale - z).detach()


class DecodeTransposed(EmaLayer):
    """decode forgets to put the features back last."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N) to features first."""
        return self.table[codes].transpose(-1, -2)


class DecodeScaled(EmaLayer):
    """decode applies the scale of the latents twice."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N) to features, doubled."""
        return 2 * self.table[codes]


class OffByOne(EmaLayer):
    """Returned codes are shifted by one against the table."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes + 1, loss)."""
        z_q, codes, loss = super().forward(z)
        return z_q, codes + 1, loss


class InFloat(EmaLayer):
    """Codes are cast to the dtype of the latents."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes, loss)."""
        z_q, codes, loss = super().forward(z)
        return z_q, codes.to(z), loss


class ProjectedCosine(nn.Module):
    """Right: a projection down, a codebook on the sphere, a projection back; returns (z_q, codes, loss)."""

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int = 3, use_cosine_sim: bool = True) -> None:
        super().__init__()
        self.use_cosine_sim = use_cosine_sim
        self.down, self.up = nn.Linear(dim, codebook_dim), nn.Linear(codebook_dim, dim)
        self.register_buffer("table", F.normalize(torch.randn(codebook_size, codebook_dim), dim=-1))

    table: Tensor

    def choose(self, raw: Tensor, unit: Tensor) -> Tensor:
        """Index of the code with the largest cosine."""
        del raw
        return (unit @ self.table.t()).argmax(-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (…, D) to (z_q, codes, loss)."""
        raw = self.down(z)
        unit = F.normalize(raw, dim=-1)
        codes = self.choose(raw, unit)
        q = self.table[codes]
        return self.up(unit + (q - unit).detach()), codes, F.mse_loss(unit, q)


class CosineByDistance(ProjectedCosine):
    """use_cosine_sim is asked for, and latents are compared before they are normalised, by another similarity."""

    def choose(self, raw: Tensor, unit: Tensor) -> Tensor:
        """Nearest to the latent itself, feature by feature."""
        del unit
        return (raw[..., None, :] - self.table).abs().sum(-1).argmin(-1)


HERE = "vqverify.mutants.lookup"
SIZES = {"dim": 4, "codebook_size": 8}
IMAGE = {"embedding_dim": 4, "num_embeddings": 8}
MUTANTS = (
    Mutant(
        "cosine_by_distance",
        f"{HERE}:CosineByDistance",
        ("lookup.nearest",),
        "latents are compared before they are normalised",
        {"dim": 6, "codebook_size": 8},
        "normalised on one side only",
    ),
    Mutant(
        "argmax_lookup",
        f"{HERE}:Argmax",
        ("lookup.nearest",),
        "argmax of distances",
        SIZES,
        "sign of the distance lost",
    ),
    Mutant(
        "wrong_metric",
        f"{HERE}:Manhattan",
        ("lookup.nearest",),
        "ℓ1 distances under a Euclidean loss",
        SIZES,
        "systematic: metric",
    ),
    Mutant(
        "lookup_in_half",
        f"{HERE}:HalfPrecision",
        ("lookup.nearest",),
        "distances in bfloat16",
        SIZES,
        "001 A.1 taken on trust; theory T29",
    ),
    Mutant(
        "lookup_ignores_norms",
        f"{HERE}:IgnoresNorms",
        ("lookup.nearest",),
        "|c|² left out",
        IMAGE,
        "systematic: term dropped",
    ),
    Mutant(
        "squares_the_sum",
        f"{HERE}:SquaresTheSum",
        ("lookup.nearest",),
        "(Σc)² for Σc² in the expanded distance",
        IMAGE,
        "systematic: order of operations",
    ),
    Mutant(
        "expanded_distance",
        f"{HERE}:Expanded",
        ("lookup.nearest_off_centre",),
        "expanded distance, not centred",
        IMAGE,
        "performance notes, section 2",
    ),
    Mutant(
        "noisy_lookup",
        f"{HERE}:Noisy",
        ("interface.eval_deterministic",),
        "sampling left on in eval",
        SIZES,
        "vector-quantize-pytorch 1.5.17",
    ),
    Mutant(
        "noise_after_index",
        f"{HERE}:NoiseAfterIndex",
        ("lookup.code_determines", "interface.eval_deterministic"),
        "noise after the index",
        SIZES,
        "systematic",
    ),
    Mutant(
        "soft_mixture",
        f"{HERE}:SoftMixture",
        ("stochastic.hard", "lookup.code_determines"),
        "a mixture of codes is returned",
        SIZES,
        "soft-to-hard VQ left soft",
    ),
    Mutant(
        "stale_code",
        f"{HERE}:StaleCode",
        ("lookup.forward_is_code",),
        "values from a cache",
        SIZES,
        "a cache that is never invalidated",
    ),
    Mutant(
        "decode_transposed",
        f"{HERE}:DecodeTransposed",
        ("lookup.decode",),
        "decode returns features first",
        SIZES,
        "vector-quantize-pytorch 1.14.4",
    ),
    Mutant("decode_scaled", f"{HERE}:DecodeScaled", ("lookup.decode",), "decode scales twice", SIZES, "systematic"),
    Mutant(
        "codes_off_by_one",
        f"{HERE}:OffByOne",
        ("lookup.forward_is_code", "interface.shapes"),
        "codes shifted by one",
        SIZES,
        "systematic: off by one",
    ),
    Mutant(
        "codes_in_float", f"{HERE}:InFloat", ("interface.shapes",), "codes in the latents' dtype", SIZES, "systematic"
    ),
)
