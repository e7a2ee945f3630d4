"""Reference quantizers: small parts that compose, exact where theory says what exact means.

Functions: lookup (:func:`nearest_codes`, :func:`sample_codes`), estimators (:func:`rotate`,
:func:`straight_through`, :func:`hessian_gradient`, ...), losses, codebook learning (:func:`ema_update`,
:func:`kmeans`, :func:`code_step`, ...). Measures are in :mod:`vqverify.reference.metrics`. Layers, each
returning :class:`Quantized`: :class:`VectorQuantizer`, :class:`ResidualVQ`, :class:`GroupedVQ`,
:class:`ProjectedCosineVQ`, :class:`SimVQ`, :class:`FSQ`, :class:`LFQ`, :class:`GumbelVQ`, :class:`SQVAE`.
Imports torch, numpy and scipy, and nothing of the harness.
"""

from vqverify.reference._rotation import antiparallel_threshold
from vqverify.reference.affine import LearnableAffine, MomentAffine
from vqverify.reference.alternating import alternate, code_step, frozen
from vqverify.reference.codebooks import (
    EmaState,
    Statistics,
    all_reduce,
    code_statistics,
    ema_update,
    laplace_counts,
    memoryless_update,
)
from vqverify.reference.estimators import (
    rotate,
    rotation_jvp,
    rotation_vjp,
    straight_through,
    synchronize,
)
from vqverify.reference.gradients import (
    attach_gradient,
    double_forward,
    exact_gradient,
    exact_loss,
    gradient_gap,
    hessian_gradient,
    hessian_loss,
    layer_gaps,
)
from vqverify.reference.gumbel import GumbelVQ
from vqverify.reference.initialise import Clusters, kmeans
from vqverify.reference.layers import VectorQuantizer
from vqverify.reference.learners import Learner
from vqverify.reference.lookup import directions, nearest_codes, nearest_codes_lower_precision
from vqverify.reference.losses import (
    beta_of_commitment,
    codebook_loss,
    commitment_loss,
    interpolated_loss,
)
from vqverify.reference.projected import ProjectedCosineVQ
from vqverify.reference.replacement import Replacement
from vqverify.reference.residual import ResidualVQ
from vqverify.reference.result import Quantized
from vqverify.reference.sampling import gumbel_like, sample_codes, warm_up
from vqverify.reference.scalar import FSQ
from vqverify.reference.sqvae import SQVAE
from vqverify.reference.structured import LFQ, GroupedVQ, SimVQ

__all__ = [
    "FSQ",
    "LFQ",
    "SQVAE",
    "Clusters",
    "EmaState",
    "GroupedVQ",
    "GumbelVQ",
    "LearnableAffine",
    "Learner",
    "MomentAffine",
    "ProjectedCosineVQ",
    "Quantized",
    "Replacement",
    "ResidualVQ",
    "SimVQ",
    "Statistics",
    "VectorQuantizer",
    "all_reduce",
    "alternate",
    "antiparallel_threshold",
    "attach_gradient",
    "beta_of_commitment",
    "code_statistics",
    "code_step",
    "codebook_loss",
    "commitment_loss",
    "directions",
    "double_forward",
    "ema_update",
    "exact_gradient",
    "exact_loss",
    "frozen",
    "gradient_gap",
    "gumbel_like",
    "hessian_gradient",
    "hessian_loss",
    "interpolated_loss",
    "kmeans",
    "laplace_counts",
    "layer_gaps",
    "memoryless_update",
    "nearest_codes",
    "nearest_codes_lower_precision",
    "rotate",
    "rotation_jvp",
    "rotation_vjp",
    "sample_codes",
    "straight_through",
    "synchronize",
    "warm_up",
]
