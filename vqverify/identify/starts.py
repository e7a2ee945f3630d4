"""Where the first codes come from: construction, latents of the first batch, or their cluster means."""

from __future__ import annotations

import torch
from torch import Tensor

from vqverify.identify.probes import Findings, Probe, Unknown, attempt, code_rows, latents_at, relative
from vqverify.quantizer import Finding, Quantized

COARSE = 0.3  # wrong means are recognised, and then checked tightly


@attempt("initialisation")
def initialisation(probe: Probe) -> Findings:
    """What the codes of the first training pass are, on clustered latents."""
    layer, z = probe.layer, probe.clustered
    if not layer.plan.warm:
        return {"initialisation": Finding("none", evidence="no training pass initialises the layer")}
    if not layer.plan.slots:
        raise Unknown("no stored codebook")
    twin = layer.build(warm=False)
    first = twin.forward(z, train=True, grad=False)
    out = twin.forward(z, train=False, trace=True)
    if out.codes is None:
        raise Unknown("no codes")
    rows, q = latents_at(out, 0).double(), code_rows(out, 0, out.codebook[0]).double()
    built = layer.build(warm=False).codebooks()[0].double()
    if relative(out.codebook[0].double() - built, built) < COARSE:
        return {
            "initialisation": Finding("none", evidence="the first pass leaves the codes near those of the construction")
        }
    off = relative(q - rows, rows)
    if off > COARSE:
        raise Unknown(f"the codes of the first pass are not near the latents ({off:.0%} off)")
    value = "data" if _rows_of(first, rows) else "kmeans"
    text = "rows of the first batch" if value == "data" else "near the means of clusters of the first batch"
    return {"initialisation": Finding(value, evidence=f"the codes of the first pass are {text} ({off:.0%} off them)")}


def _rows_of(first: Quantized, rows: Tensor) -> bool:
    """Whether codes that several latents share are rows themselves, where z_q shows the codes as they were then."""
    q = first.z_q.rows.detach().double()
    if first.codes is None or first.codes.shape[1] > 1 or q.shape != rows.shape:
        return False
    k = first.codes[:, 0].clamp_min(0)
    shared = torch.bincount(k)[k] > 1
    near = torch.cdist(q[shared], rows, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    return bool(shared.any()) and bool((near <= 1e-6 * rows.norm(dim=1).mean()).all())
