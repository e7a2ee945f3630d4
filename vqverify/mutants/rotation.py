"""Rotations that are none: each passes some statements of the rotation trick and breaks the one that names it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vqverify.mutant import Mutant
from vqverify.mutants.base import RotationLayer


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _residual(q: Tensor, moved: Tensor) -> Tensor:
    """A value that is the code whatever the Jacobian, as a residual form gives it."""
    return q + (moved - moved.detach())


class Transposed(RotationLayer):
    """2 ẑ(q̂·z) for 2 q̂(ẑ·z): the gradient is turned the wrong way."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Value of the code, Jacobian λRᵀ."""
        return _residual(q, super().estimate(z, q))

    def turn(self, z: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        """Rᵀz."""
        return z - 2 * r * _dot(r, z) + 2 * u * _dot(v, z)


class Unscaled(RotationLayer):
    """λ left out of the gradient."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Value of the code, Jacobian R."""
        u, v = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
        return _residual(q, self.turn(z, u, v, F.normalize(u + v, dim=-1)))


class ForwardUnscaled(RotationLayer):
    """λ left out altogether: the decoder sees a code with the latent's norm."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Rz, of the wrong norm."""
        u, v = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
        return self.turn(z, u, v, F.normalize(u + v, dim=-1))


class Silent(RotationLayer):
    """rotation_trick is read and not acted on: straight-through."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through, whatever was asked for."""
        return z + (q - z).detach()


class Reflection(RotationLayer):
    """One Householder reflection along ẑ − q̂: takes z to q, keeps norms and angles, turns space inside out."""

    def turn(self, z: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        """Hz."""
        del r
        w = F.normalize(u - v, dim=-1)
        return z - 2 * w * _dot(w, z)


class Differentiated(RotationLayer):
    """R and λ stay in the graph: the radial part of the gradient is lost."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Rz with R in the graph, and a detached scale."""
        u, v = F.normalize(z, dim=-1), F.normalize(q, dim=-1).detach()
        r = F.normalize(u + v, dim=-1)
        scale = (q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp_min(1e-6)).detach()
        return _residual(q, scale * (z - 2 * r * _dot(r, z) + 2 * v.detach() * _dot(u.detach(), z)))


class Unguarded(RotationLayer):
    """No guard at z = 0: 0/0 in the norms."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """The formula of the paper as printed."""
        u, v = (z / z.norm(dim=-1, keepdim=True)).detach(), (q / q.norm(dim=-1, keepdim=True)).detach()
        r = (u + v) / (u + v).norm(dim=-1, keepdim=True)
        return (q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True)).detach() * self.turn(z, u, v, r)


class OnePlusCosine(RotationLayer):
    """Divides by 1 + cos θ, which loses its digits near θ = π."""

    def turn(self, z: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        """Z − (u + v)((u + v)·z)/(1 + u·v) + 2v(u·z)."""
        del r
        return z - (u + v) * _dot(u + v, z) / (1 + _dot(u, v)).clamp_min(1e-7) + 2 * v * _dot(u, z)


class InvertedScale(RotationLayer):
    """|z|/|q| for |q|/|z| in the gradient."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Value of the code, Jacobian R/λ."""
        u, v = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
        scale = (z.norm(dim=-1, keepdim=True) / q.norm(dim=-1, keepdim=True).clamp_min(1e-6)).detach()
        return _residual(q, scale * self.turn(z, u, v, F.normalize(u + v, dim=-1)))


HERE = "vqverify.mutants.rotation"
SIZES = {"dim": 4, "codebook_size": 8}
WHERE = "000 (2410.06424) §4.2, appendix A"
MUTANTS = (
    Mutant(
        "rotation_transposed", f"{HERE}:Transposed", ("rotation.angle", "estimator.jacobian"), "Rᵀ for R", SIZES, WHERE
    ),
    Mutant("rotation_unscaled", f"{HERE}:Unscaled", ("rotation.norm",), "λ left out of the gradient", SIZES, WHERE),
    Mutant(
        "rotation_forward_unscaled",
        f"{HERE}:ForwardUnscaled",
        ("lookup.forward_is_code", "rotation.norm"),
        "λ left out of the value",
        SIZES,
        "the missing rescale of several re-implementations",
    ),
    Mutant(
        "silent_straight_through",
        f"{HERE}:Silent",
        ("honesty.traits",),
        "rotation_trick=True is not acted on",
        SIZES,
        "an option that falls through to the default branch",
    ),
    Mutant(
        "rotation_reflection",
        f"{HERE}:Reflection",
        ("rotation.determinant",),
        "one reflection for a rotation",
        SIZES,
        "theory T1, T3: passes angle and norm",
    ),
    Mutant(
        "rotation_differentiated",
        f"{HERE}:Differentiated",
        ("estimator.detached",),
        "R stays in the graph",
        SIZES,
        "theory T4",
    ),
    Mutant(
        "rotation_unguarded",
        f"{HERE}:Unguarded",
        ("estimator.finite",),
        "no guard at z = 0",
        SIZES,
        "000 A.4, as printed; theory T6",
    ),
    Mutant(
        "rotation_one_plus_cosine",
        f"{HERE}:OnePlusCosine",
        ("rotation.accuracy",),
        "divides by 1 + cos θ",
        SIZES,
        "theory T5",
    ),
    Mutant(
        "rotation_scale_inverted",
        f"{HERE}:InvertedScale",
        ("rotation.norm",),
        "1/λ for λ",
        SIZES,
        "systematic: factor inverted",
    ),
)
