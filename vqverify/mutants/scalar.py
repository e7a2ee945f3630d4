"""Scalar quantizers with one mistake each, and the right one that they were made from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqverify.mutant import Mutant


class RoundingLeftOut(nn.Module):
    """A bounded scalar quantizer that never rounds: everything trains, nothing is quantised."""

    def __init__(self, dim: int, step: float = 0.25) -> None:
        super().__init__()
        self.step = step
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, z: Tensor) -> Tensor:
        """Bound z (..., D) to (−1, 1), and stop there."""
        return torch.tanh(z * self.scale)


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


class RoundsOnly(ScalarLayer):
    """torch.round as it is: its derivative is 0, and the graph is whole."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (…, D) to (z_q, codes), without an estimator."""
        grid = self.bound(z).round()
        return grid / (self._l // 2), self.index(grid.detach())


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


class GradientScaled(ScalarLayer):
    """The gradient of rounding is counted as 1.1."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (…, D) to (z_q, codes)."""
        bounded = self.bound(z)
        grid = bounded.round()
        return (1.1 * bounded + (grid - 1.1 * bounded).detach()) / (self._l // 2), self.index(grid.detach())


class GradientWithoutH(ScalarLayer):
    """Straight-through from tanh, the height h of the bound left out of the backward pass."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (…, D) to (z_q, codes)."""
        grid = self.bound(z).round().detach()
        half = (self._l - 1) * (1 + self.eps) / 2
        soft = (z + ((self._l % 2 == 0) * 0.5 / half).atanh()).tanh()
        return soft + (grid / (self._l // 2) - soft).detach(), self.index(grid)


class NoisyTrain(ScalarLayer):
    """Codes come after the noise of training, and run out of range."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (…, D) to (z_q, codes)."""
        bounded = self.bound(z)
        noise = (torch.rand_like(bounded) - 0.5).mul(3).round() * self.training
        grid = bounded.round() + noise
        return (bounded + (grid - bounded).detach()) / (self._l // 2), self.index(grid.detach())


HERE = "vqverify.mutants.scalar"
LEVELS = {"levels": [8, 5, 5]}
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
        "rounding_without_estimator",
        f"{HERE}:RoundsOnly",
        ("estimator.alive",),
        "round without straight-through",
        LEVELS,
        "systematic: missing straight-through",
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
        "fsq_gradient_scaled",
        f"{HERE}:GradientScaled",
        ("fsq.gradient",),
        "gradient of rounding counted as 1.1",
        LEVELS,
        "systematic: a factor",
    ),
    Mutant(
        "fsq_gradient_without_h",
        f"{HERE}:GradientWithoutH",
        ("fsq.gradient",),
        "gradient of tanh for that of h tanh",
        LEVELS,
        "systematic: a missing factor",
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
)
