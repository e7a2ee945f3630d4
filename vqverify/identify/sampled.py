"""The temperature of codes that are drawn at random: p ∝ exp(−energy/T), fitted to the codes of many passes."""

from __future__ import annotations

import torch
from torch import Tensor

from vqverify.identify.probes import Findings, Probe, Unknown, dormant, latents_at
from vqverify.quantizer import Finding

DRAWS = 96  # passes with different seeds; with about 100 latents each, T is known to a few percent
GRID = torch.logspace(-4, 4, 161, dtype=torch.float64)  # temperatures, relative to the spread of the energies
COARSE = 4.0  # standard deviations within which χ² of a law must lie
CLEAR = 5.0  # by how much of log-likelihood a law must be behind to be ruled out


def sampled(probe: Probe) -> Findings:
    """T of codes drawn in training; dormant where they are not drawn.

    Raises:
        Unknown: if codes are drawn by no law of distances that probing knows.
    """
    out = probe.train
    if out.codes is None or not out.codebook:
        return _nothing("no gradient runs through a softmax, and there are no codes to see drawn")
    draws = [out.codes[:, 0]]
    for seed in range(1, DRAWS):
        codes = probe.run(probe.z, train=True, seed=seed).codes
        assert codes is not None
        draws.append(codes[:, 0])
        if seed == 2 and all(torch.equal(draws[0], other) for other in draws):
            return _nothing("no gradient runs through a softmax over the codes, and no code is drawn at random")
    z, e = latents_at(out, 0).double(), out.codebook[0].double()
    counts = torch.stack([torch.bincount(row.clamp_min(0), minlength=len(e)) for row in torch.stack(draws, 1)]).double()
    distance = torch.cdist(z, e)
    energies = {"|z − e|²": distance.square(), "|z − e|": distance, "−z·e": -(z @ e.t())}
    fits = {name: _fit(energy, counts) for name, energy in energies.items()}
    best = max(fits, key=lambda name: fits[name][1])
    value, likelihood, off = fits[best]
    if off > COARSE:
        raise Unknown(f"codes are drawn at random, but not by exp(−energy/T) of a distance ({off:.1f}σ off at best)")
    alike = [name for name, fit in fits.items() if fit[1] > likelihood - CLEAR and fit[2] <= COARSE]
    text = f"{DRAWS} draws of {len(z)} codes follow " + ", or ".join(
        f"exp(−{n}/T) with T = {fits[n][0]:.3g}" for n in alike
    )
    equivalent = Finding([float(f"{fits[name][0]:.3g}") for name in alike], evidence=text)
    return {
        "temperature": Finding(float(f"{value:.3g}") if len(alike) == 1 else None, evidence=text),
        "temperature_equivalent": equivalent,
    }


def _nothing(reason: str) -> Findings:
    return {"temperature": dormant(reason)}


def _fit(energy: Tensor, counts: Tensor) -> tuple[float, float, float]:
    """(T of greatest likelihood, that likelihood, χ² of the counts in standard deviations above its mean)."""
    energy = energy - energy.amin(1, keepdim=True)
    grid = GRID * float(energy.mean())
    likelihood = [float((counts * (-energy / t).log_softmax(1)).sum()) for t in grid]
    best = max(range(len(grid)), key=lambda i: likelihood[i])
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    fine = torch.linspace(low, high, 41, dtype=torch.float64)
    t = max(fine.tolist(), key=lambda t: float((counts * (-energy / t).log_softmax(1)).sum()))
    log_p = (-energy / t).log_softmax(1)
    # at the best T the mean energy fits by itself; what remains is whether codes are as frequent as p says
    expected = log_p.exp() * counts.sum(1, keepdim=True)
    chi = ((counts - expected).square() / expected.clamp_min(1e-9))[expected > 1].sum()
    kept = float((expected > 1).sum())
    total = float((counts * log_p).sum())
    return t, total, (float(chi) - kept) / max((2 * kept) ** 0.5, 1.0)
