"""What a layer is, found by probing: coarse here, since the laws are then checked tightly.

Every finding has its evidence; what cannot be decided has the value None, with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqverify.identify.affine import affine
from vqverify.identify.capability import (
    deterministic,
    eval_deterministic,
    hard,
    hard_in_eval,
    offers,
    settable,
    stochastic,
)
from vqverify.identify.estimator import estimator, estimator_in_eval
from vqverify.identify.learning import decay, learning, update_order
from vqverify.identify.loss import loss
from vqverify.identify.metric import metric
from vqverify.identify.optimised import alternating, synchronized
from vqverify.identify.precision import effective_precision
from vqverify.identify.probes import Findings, Probe
from vqverify.identify.relaxed import temperature
from vqverify.identify.replacement import replacement
from vqverify.identify.smoothing import ageing, smoothing
from vqverify.identify.starts import initialisation
from vqverify.identify.structure import sizes, structure

if TYPE_CHECKING:
    from vqverify.subject.layer import Layer

__all__ = ["identify"]

PROBES = 97  # latents of a pass, at least; more than D, so that rows are in general position

IDENTIFIERS = (
    ageing, offers, deterministic, eval_deterministic, hard, hard_in_eval, settable, effective_precision,
    estimator, estimator_in_eval, temperature, sizes, metric, learning, decay, replacement, smoothing, update_order, loss, structure,
    synchronized, alternating, initialisation, affine,
)  # fmt: skip


def identify(layer: Layer) -> Findings:
    """Probe a layer and conclude what it is. The layer is left as built; nothing that it does raises.

    Args:
        layer: built and warmed up.

    Returns:
        A finding for each trait, of the names in `vqverify.subject.claims.CLAIMS` and the capability traits.
    """
    probe = Probe(layer, max(PROBES, layer.domain.dim + 13, layer.domain.min_n))
    found: Findings = {}
    for identifier in IDENTIFIERS:
        for name, finding in identifier(probe).items():
            if name not in found or found[name].value is None:
                found[name] = finding
    found |= stochastic(found)
    layer.restore()
    layer.module.eval()
    return found
