"""Stacks, scalar, sign and grouped quantizers with one mistake each, and the right ones that they were made from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import ImageLayer


class RoundingLeftOut(nn.Module):
    """A bounded scalar quantizer that never rounds: everything trains, nothing is quantised."""

    def __init__(self, dim: int, step: float = 0.25) -> None:
        super().__init__()
        self.step = step
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, z: Tensor) -> Tensor:
        """Bound z (..., D) to (−1, 1), and stop there."""
        return torch.tanh(z * self.scale)


class StackLayer(nn.Module):
    """(B, N, D), one (M, K, D) parameter; levels straight-through on the residual of attached codes. The control."""

    def __init__(self, dim: int, codebook_size: int, num_quantizers: int = 3, commitment_weight: float = 0.25) -> None:
        super().__init__()
        scales = 0.5 ** torch.arange(num_quantizers).view(-1, 1, 1)
        self.books = nn.Parameter(scales * torch.randn(num_quantizers, codebook_size, dim))
        self.commitment_weight = commitment_weight

    def estimate(self, r: Tensor, q: Tensor) -> Tensor:
        """Straight-through."""
        return r + (q - r).detach()

    def left(self, r: Tensor, out: Tensor) -> Tensor:
        """What the next level gets."""
        return r - out

    def gather(self, outs: list[Tensor], z: Tensor) -> Tensor:
        """z_q from the levels."""
        del z
        return torch.stack(outs).sum(0)

    def cost(self, r: Tensor, q: Tensor, level: int) -> Tensor:
        """Codebook and commitment loss of one level."""
        del level
        return F.mse_loss(q, r.detach()) + self.commitment_weight * F.mse_loss(r, q.detach())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes (B, N, M), loss)."""
        r, anchor, outs, codes, loss = z, z, list[Tensor](), list[Tensor](), z.new_zeros(())
        for level, book in enumerate(self.books):
            index = torch.cdist(r.detach(), book.expand(len(r), -1, -1)).argmin(-1)
            q = F.embedding(index, book)
            loss = loss + self.cost(anchor, q, level)
            out = self.estimate(r, q)
            r, anchor = self.left(r, out), self.left(anchor, out.detach())
            outs.append(out)
            codes.append(index)
        return self.gather(outs, z), torch.stack(codes, -1), loss


class Gain(StackLayer):
    """The residual subtracts detached codes: every level carries the identity."""

    def left(self, r: Tensor, out: Tensor) -> Tensor:
        """The next residual, r − sg q."""
        return r - out.detach()


class AttachedTwice(StackLayer):
    """A second straight-through around a sum that is attached already."""

    def gather(self, outs: list[Tensor], z: Tensor) -> Tensor:
        """z_q with the gradient of z twice."""
        total = super().gather(outs, z)
        return total + (z - z.detach())


class RotationDetached(Gain):
    """Rotation a level, on residuals of detached codes: J₁ + J₂ + …, which is not I where the stack is exact."""

    def estimate(self, r: Tensor, q: Tensor) -> Tensor:
        """λRr with detached factors."""
        u, v = F.normalize(r, dim=-1).detach(), F.normalize(q, dim=-1).detach()
        w = F.normalize(u + v, dim=-1)
        scale = (q.norm(dim=-1, keepdim=True) / r.norm(dim=-1, keepdim=True).clamp_min(1e-6)).detach()
        return scale * (r - 2 * w * (w * r).sum(-1, keepdim=True) + 2 * v * (u * r).sum(-1, keepdim=True))


class FirstLossOnly(StackLayer):
    """Only the first level's loss is added up: the other codes never move."""

    def cost(self, r: Tensor, q: Tensor, level: int) -> Tensor:
        """0 after the first level."""
        return super().cost(r, q, level) if level == 0 else r.new_zeros(())


class Stale(StackLayer):
    """Each level searches z minus the last code only."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The residual starts from z again."""
        r, outs, codes, loss = z, list[Tensor](), list[Tensor](), z.new_zeros(())
        for level, book in enumerate(self.books):
            index = torch.cdist(r.detach(), book.expand(len(r), -1, -1)).argmin(-1)
            q = F.embedding(index, book)
            loss = loss + self.cost(r, q, level)
            outs.append(q)
            codes.append(index)
            r = z - q.detach()
        total = torch.stack(outs).sum(0)
        return z + (total - z).detach(), torch.stack(codes, -1), loss


class Averaged(StackLayer):
    """The mean of the levels for their sum."""

    def gather(self, outs: list[Tensor], z: Tensor) -> Tensor:
        """Mean over the levels."""
        del z
        return torch.stack(outs).mean(0)


class ScalarLayer(nn.Module):
    """(B, …, D), FSQ as in its paper's appendix. The control of its mutants."""

    eps = 1e-3

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = [int(level) for level in levels]
        self.register_buffer("_l", torch.tensor(self.levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(self.basis()), persistent=False)

    _l: Tensor
    _basis: Tensor

    def basis(self) -> list[int]:
        """Strides of the code."""
        return [math.prod(self.levels[:i]) for i in range(len(self.levels))]

    def bound(self, z: Tensor) -> Tensor:
        """The bound h tanh(z + s) − o."""
        half = (self._l - 1) * (1 + self.eps) / 2
        offset = (self._l % 2 == 0) * 0.5
        return (z + (offset / half).atanh()).tanh() * half - offset

    def index(self, grid: Tensor) -> Tensor:
        """The code of a grid point."""
        return ((grid.long() + self._l // 2) * self._basis).sum(-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (…, D) to (z_q, codes)."""
        bounded = self.bound(z)
        grid = bounded.round()
        z_q = (bounded + (grid - bounded).detach()) / (self._l // 2)
        return z_q, self.index(grid.detach())


class Unoffset(ScalarLayer):
    """No offset for even L: the outer levels are half as wide again, and there is one too many."""

    def bound(self, z: Tensor) -> Tensor:
        """The bound h tanh(z)."""
        return z.tanh() * (self._l - 1) * (1 + self.eps) / 2


class HalfLevel(ScalarLayer):
    """The offset of even L is used for odd L too."""

    def bound(self, z: Tensor) -> Tensor:
        """The bound h tanh(z + s) − ½ for every L."""
        half = (self._l - 1) * (1 - self.eps) / 2
        return (z + (0.5 / half).atanh()).tanh() * half - 0.5


class Unshifted(ScalarLayer):
    """The offset is subtracted, and the tanh not shifted to meet it: z = 0 lies on a boundary."""

    def bound(self, z: Tensor) -> Tensor:
        """The bound h tanh(z) − o."""
        return z.tanh() * (self._l - 1) * (1 + self.eps) / 2 - (self._l % 2 == 0) * 0.5


class LevelTooMany(ScalarLayer):
    """h = L/2 for (L − 1)/2."""

    def bound(self, z: Tensor) -> Tensor:
        """L/2 tanh(z)."""
        return z.tanh() * self._l * (1 + self.eps) / 2


class LevelLostScalar(ScalarLayer):
    """ε with the wrong sign and far too large: the outermost level is never reached."""

    eps = -0.3


class IndexBf16(ScalarLayer):
    """The code is added up in bfloat16, which holds 256 integers."""

    def index(self, grid: Tensor) -> Tensor:
        """Σ in bfloat16."""
        return ((grid + self._l // 2).bfloat16() * self._basis.bfloat16()).sum(-1).long()


class IndexInt8(ScalarLayer):
    """The code is returned in int8."""

    def index(self, grid: Tensor) -> Tensor:
        """Wraps at 128."""
        return super().index(grid).to(torch.int8)


class BasisInclusive(ScalarLayer):
    """cumprod without the leading 1."""

    def basis(self) -> list[int]:
        """Π_{j ≤ i} L_j."""
        return [math.prod(self.levels[: i + 1]) for i in range(len(self.levels))]


class NoisyTrain(ScalarLayer):
    """Codes come after the noise of training, and run out of range."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (…, D) to (z_q, codes)."""
        bounded = self.bound(z)
        noise = (torch.rand_like(bounded) - 0.5).mul(3).round() * self.training
        grid = bounded.round() + noise
        return (bounded + (grid - bounded).detach()) / (self._l // 2), self.index(grid.detach())


class GroupLayer(nn.Module):
    """(B, N, D), G codebooks (G, K, D/G) learned by EMA without smoothing, codes (B, N, G). The control."""

    def __init__(self, dim: int, codebook_size: int, num_groups: int = 2, decay: float = 0.9) -> None:
        super().__init__()
        self.decay, self.groups = decay, num_groups
        self.register_buffer("codes", torch.randn(num_groups, codebook_size, dim // num_groups))
        self.register_buffer("counts", torch.ones(num_groups, codebook_size))
        self.register_buffer("sums", self.codes.clone())

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def prepare(self, x: Tensor) -> Tensor:
        """Latents as they are searched, (G, N, D/G)."""
        return x

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor) -> None:
        """One EMA step a group."""
        hot = F.one_hot(index, self.codes.shape[1]).to(x)
        self.counts.mul_(self.decay).add_(hot.sum(1), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(hot.transpose(1, 2) @ x, alpha=1 - self.decay)
        self.codes.copy_(self.sums / self.counts.unsqueeze(-1))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes)."""
        x = z.reshape(-1, self.groups, z.shape[-1] // self.groups).transpose(0, 1)
        index = torch.cdist(self.prepare(x.detach()), self.codes).argmin(-1)
        q = torch.stack([F.embedding(i, book) for i, book in zip(index, self.codes, strict=True)])
        if self.training:
            self.update(x.detach(), index)
        out = (x + (q - x).detach()).transpose(0, 1).reshape(z.shape)
        return out, index.t().reshape(*z.shape[:-1], self.groups)


class NormalisedTogether(GroupLayer):
    """In training the search sees latents scaled by the norm of the whole latent."""

    def prepare(self, x: Tensor) -> Tensor:
        """Scaled by 1/(1 + |z|²) over every group."""
        return x / (1 + x.square().sum((0, 2), keepdim=True)) if self.training else x


class AveragedTogether(GroupLayer):
    """Counts are added up over the groups."""

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor) -> None:
        """One EMA step with the counts of all groups."""
        hot = F.one_hot(index, self.codes.shape[1]).to(x)
        self.counts.mul_(self.decay).add_(hot.sum((0, 1)).expand_as(self.counts), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(hot.transpose(1, 2) @ x, alpha=1 - self.decay)
        self.codes.copy_(self.sums / self.counts.unsqueeze(-1))


class SignLayer(nn.Module):
    """(B, N, D), signs and their bits, no stored codebook. The control of its mutants."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def signs(self, z: Tensor) -> Tensor:
        """±1."""
        return torch.where(z > 0, 1.0, -1.0).to(z)

    def index(self, q: Tensor) -> Tensor:
        """Σ 2ⁱ[qᵢ > 0]."""
        return ((q > 0).long() << torch.arange(self.dim, device=q.device)).sum(-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes)."""
        q = self.signs(z)
        return z + (q - z).detach(), self.index(q)


class SignOfZero(SignLayer):
    """torch.sign: 0 has no sign, and no code."""

    def signs(self, z: Tensor) -> Tensor:
        """−1, 0 or 1."""
        return z.sign()


class BitsInt8(SignLayer):
    """Bits packed into one byte, whatever D."""

    def index(self, q: Tensor) -> Tensor:
        """Wraps at 128."""
        return super().index(q).to(torch.int8)


class BitLost(SignLayer):
    """2^(i − 1): the first two bits weigh the same."""

    def index(self, q: Tensor) -> Tensor:
        """Σ 2^max(i − 1, 0)."""
        return ((q > 0).long() << (torch.arange(self.dim) - 1).clamp_min(0)).sum(-1)


class Reporting(ImageLayer):
    """ImageLayer that reports other numbers in the place of its perplexity. The control: usage."""

    def report(self, codes: Tensor, size: int) -> Tensor:
        """Share of the codes in use."""
        return torch.tensor(len(codes.unique()) / size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From z (B, D, H, W) to (loss, z_q, number, codes)."""
        loss, z_q, _, codes = super().forward(z)
        return loss, z_q, self.report(codes, self.embedding.num_embeddings), codes


class PerplexityBase(Reporting):
    """2 to the power of an entropy in nats."""

    def report(self, codes: Tensor, size: int) -> Tensor:
        """2^H, H in nats."""
        p = torch.bincount(codes.flatten(), minlength=size) / codes.numel()
        return 2.0 ** -(p * (p + 1e-10).log()).sum()


class PerplexityEpsilon(Reporting):
    """An ε of a thousandth inside the logarithm."""

    def report(self, codes: Tensor, size: int) -> Tensor:
        """H of p + 10⁻³, exponentiated."""
        p = torch.bincount(codes.flatten(), minlength=size) / codes.numel()
        return (-(p * (p + 1e-3).log()).sum()).exp()


class UsageOfRange(Reporting):
    """The largest index for the number of codes."""

    def report(self, codes: Tensor, size: int) -> Tensor:
        """(max + 1)/K."""
        return (codes.max() + 1) / size


HERE = "vqverify.mutants.structure"
STACK = {"dim": 8, "codebook_size": 16, "num_quantizers": 3}
LEVELS = {"levels": [8, 5, 5]}
IMAGE = {"num_embeddings": 16, "embedding_dim": 8}
FSQ = ("fsq.bijection",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "rounding_left_out",
        f"{HERE}:RoundingLeftOut",
        ("lookup.discrete",),
        "the round of a scalar quantizer was left out",
        {"dim": 4},
        "an ablation flag left on",
    ),
    Mutant(
        "residual_gain",
        f"{HERE}:Gain",
        ("residual.gradient",),
        "identity counted once a level",
        STACK,
        "vector-quantize-pytorch's ResidualVQ(rotation_trick=False); theory T34",
    ),
    Mutant(
        "residual_attached_twice",
        f"{HERE}:AttachedTwice",
        ("residual.gradient",),
        "straight-through around attached levels",
        STACK,
        "systematic: doubled path",
    ),
    Mutant(
        "residual_rotation_detached",
        f"{HERE}:RotationDetached",
        ("residual.gradient",),
        "rotations on detached residuals",
        STACK,
        "systematic: detached; theory T13, T34",
    ),
    Mutant(
        "residual_first_loss_only",
        f"{HERE}:FirstLossOnly",
        ("residual.gradient", "loss.trains"),
        "later losses left out",
        STACK,
        "vector-quantize-pytorch: no gradient in later levels",
    ),
    Mutant("residual_stale", f"{HERE}:Stale", ("residual.sum",), "residual from z again", STACK, "systematic: stale"),
    Mutant(
        "residual_averaged", f"{HERE}:Averaged", ("residual.sum",), "mean of the levels", STACK, "systematic: averaged"
    ),
    Mutant("fsq_unoffset", f"{HERE}:Unoffset", FSQ, "no offset for even L", LEVELS, "theory T36: even-L off by one"),
    Mutant("fsq_half_level", f"{HERE}:HalfLevel", FSQ, "even L's offset for odd L", LEVELS, "theory T36"),
    Mutant(
        "fsq_unshifted", f"{HERE}:Unshifted", FSQ, "tanh not shifted", LEVELS, "Mentzer 2023, appendix A.1: s forgotten"
    ),
    Mutant("fsq_level_too_many", f"{HERE}:LevelTooMany", FSQ, "L/2 for (L − 1)/2", LEVELS, "systematic: off by one"),
    Mutant(
        "fsq_level_lost", f"{HERE}:LevelLostScalar", FSQ, "outer levels out of reach", LEVELS, "systematic: sign of ε"
    ),
    Mutant(
        "fsq_index_bf16",
        f"{HERE}:IndexBf16",
        FSQ,
        "code in bfloat16",
        {"levels": [8, 8, 8]},
        "vector-quantize-pytorch's FSQ under autocast; theory T36",
    ),
    Mutant("fsq_index_int8", f"{HERE}:IndexInt8", FSQ, "code in int8", LEVELS, "systematic: dtype"),
    Mutant(
        "fsq_basis_inclusive", f"{HERE}:BasisInclusive", FSQ, "strides from L₁ on", LEVELS, "systematic: off by one"
    ),
    Mutant(
        "fsq_noise_in_code",
        f"{HERE}:NoisyTrain",
        FSQ,
        "code after the noise",
        LEVELS,
        "systematic: order of operations",
    ),
    Mutant(
        "groups_normalised_together",
        f"{HERE}:NormalisedTogether",
        ("product.independent",),
        "one norm over all groups",
        {"dim": 8, "codebook_size": 16},
        "systematic: wrong axis",
    ),
    Mutant(
        "groups_averaged_together",
        f"{HERE}:AveragedTogether",
        ("product.independent",),
        "counts mixed over groups",
        {"dim": 8, "codebook_size": 16},
        "systematic: wrong axis",
    ),
    Mutant("sign_of_zero", f"{HERE}:SignOfZero", ("lfq.sign",), "torch.sign(0)", {"dim": 8}, "theory T37: 0 output"),
    Mutant(
        "sign_bits_int8", f"{HERE}:BitsInt8", ("lfq.sign",), "bits in int8", {"dim": 10}, "theory T37: d ≥ 32 in int32"
    ),
    Mutant("sign_bit_lost", f"{HERE}:BitLost", ("lfq.sign",), "2^(i − 1)", {"dim": 6}, "systematic: off by one"),
    Mutant(
        "perplexity_base",
        f"{HERE}:PerplexityBase",
        ("metrics.perplexity",),
        "2^H of nats",
        IMAGE,
        "theory T31: base mismatch",
    ),
    Mutant(
        "perplexity_epsilon",
        f"{HERE}:PerplexityEpsilon",
        ("metrics.perplexity",),
        "ε inside the logarithm",
        IMAGE,
        "theory T31: ε bias",
    ),
    Mutant(
        "usage_of_range",
        f"{HERE}:UsageOfRange",
        ("metrics.usage",),
        "largest index counted",
        IMAGE,
        "systematic: max for count",
    ),
)
