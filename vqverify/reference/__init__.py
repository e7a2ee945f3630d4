"""Reference quantizers: small parts that compose, exact where theory says what exact means.

Plain functions: :func:`nearest_codes`, :func:`straight_through`, :func:`rotate`, :func:`commitment_loss`,
:func:`codebook_loss`, :func:`code_statistics`, :func:`ema_update`. Layers, each returning :class:`Quantized`:
:class:`VectorQuantizer`, :class:`ResidualVQ`, :class:`FSQ`, :class:`ProjectedCosineVQ`, :class:`GumbelVQ`.
Imports torch, numpy and scipy, and nothing of the harness.
"""

from vqverify.reference.codebooks import (
    EmaState,
    Statistics,
    all_reduce,
    code_statistics,
    ema_update,
    laplace_counts,
)
from vqverify.reference.estimators import (
    antiparallel_threshold,
    rotate,
    rotation_jvp,
    rotation_vjp,
    straight_through,
)
from vqverify.reference.gumbel import GumbelVQ
from vqverify.reference.layers import Quantized, VectorQuantizer
from vqverify.reference.lookup import directions, nearest_codes
from vqverify.reference.losses import (
    beta_of_commitment,
    codebook_loss,
    commitment_loss,
    interpolated_loss,
)
from vqverify.reference.projected import ProjectedCosineVQ
from vqverify.reference.residual import ResidualVQ
from vqverify.reference.scalar import FSQ

__all__ = [
    "FSQ",
    "EmaState",
    "GumbelVQ",
    "ProjectedCosineVQ",
    "Quantized",
    "ResidualVQ",
    "Statistics",
    "VectorQuantizer",
    "all_reduce",
    "antiparallel_threshold",
    "beta_of_commitment",
    "code_statistics",
    "codebook_loss",
    "commitment_loss",
    "directions",
    "ema_update",
    "interpolated_loss",
    "laplace_counts",
    "nearest_codes",
    "rotate",
    "rotation_jvp",
    "rotation_vjp",
    "straight_through",
]
