"""How a code is chosen: the metric under which the chosen code is the best one, for most generic latents."""

from __future__ import annotations

import torch
from torch import Tensor

from vqverify.identify.capability import redrawn
from vqverify.identify.probes import Findings, Probe, Unknown, attempt, latents_at
from vqverify.quantizer import Finding, Quantized

AGREES = 0.8
MOST, LEAD = 0.6, 0.15  # a metric that explains most codes, and no other near it: the search is meant to be that


def choices(z: Tensor, e: Tensor) -> dict[str, Tensor]:
    """The code that each metric takes, (N,) each; `euclidean:farthest` is a mistake."""
    z, e = z.double(), e.double()
    products = z @ e.t()
    squares = e.square().sum(1) - 2 * products
    cosine = products / e.norm(dim=1).clamp_min(1e-30)
    return {
        "euclidean": squares.argmin(1),
        "cosine": cosine.argmax(1),
        "dot": products.argmax(1),
        "euclidean:farthest": squares.argmax(1),
        "cosine:least": cosine.argmin(1),
    }


def _agreement(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Share of latents whose code each metric explains, over all levels."""
    hits: dict[str, list[Tensor]] = {}
    for z, e, codes in pairs:
        kept = codes >= 0
        for name, choice in choices(z[kept], e).items():
            hits.setdefault(name, []).append(choice == codes[kept])
    return {name: float(torch.cat(parts).double().mean()) for name, parts in hits.items()}


def _pairs(out: Quantized, books: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    if out.codes is None:
        raise Unknown("the layer returns no codes")
    levels = range(len(out.levels) or 1)
    return [(latents_at(out, level), books[level], out.codes[:, level]) for level in levels]


@attempt("metric", "metric_equivalent")
def metric(probe: Probe) -> Findings:
    """The metric that explains most codes, and those that could not be told from it."""
    layer = probe.layer
    if not layer.codebooks():
        raise Unknown("no stored codebook to compare latents with")
    scores = _agreement(_pairs(probe.train, list(probe.train.codebook or layer.codebooks())))
    free = not (layer.plan.sphere or layer.domain.codebook == "sphere")
    if free and max(scores.values()) > AGREES:  # codes of many norms tell the metrics apart
        layer.restore()
        books = redrawn(probe, 1)
        layer.set_codebook(books)
        apart = _agreement(_pairs(layer.forward(probe.z, train=True, seed=probe.seed, trace=True), books))
        scores = apart if max(apart.values()) > AGREES else scores
    elif max(scores.values()) <= AGREES:  # codes may be drawn at random in training: those of eval then
        layer.restore()
        codes = layer.forward(probe.z, train=False).codes
        z = latents_at(probe.train, 0)
        if codes is not None:
            scores = _agreement([(z, (probe.train.codebook or layer.codebooks())[0], codes[:, 0])])
    leading = _leading(probe) if free and max(scores.values()) <= AGREES else None
    scores = leading or scores
    best = max(scores, key=lambda name: scores[name])
    text = f"{best.partition(':')[0]} explains {scores[best]:.0%} of the codes of {len(probe.z)} generic latents"
    if scores[best] <= AGREES and leading is None:
        if exchanged := _exchanged(probe.train):
            return exchanged
        raise Unknown(f"no metric explains the codes: {text} at best")
    equal = [name for name in scores if ":" not in name and scores[name] > scores[best] - 0.02]
    name, _, mistake = best.partition(":")
    if "cosine" in equal and _unit(latents_at(probe.train, 0)):
        name, text = (
            "cosine",
            f"{text}, as do {', '.join(equal)}; the latents are normalised before the search",
        )
    return {
        "metric": Finding(name, evidence=text, mistake=mistake or None),
        "metric_equivalent": Finding(equal, evidence="metrics that choose the same codes on this layer's codebooks"),
    }


def _exchanged(out: Quantized) -> Findings:
    """The metric by which each level searches the codebook of another one; nothing if it does not."""
    count = len(out.levels)
    if out.codes is None or count < 2 or count != len(out.codebook) or len({e.shape for e in out.codebook}) > 1:
        return {}
    shares = [
        [_agreement([(latents_at(out, level), e, out.codes[:, level])]) for e in out.codebook] for level in range(count)
    ]
    for name in ("euclidean", "cosine"):
        owners = [max(range(count), key=lambda at, own=own: own[at][name]) for own in shares]
        if len(set(owners)) == count and all(own[at][name] > AGREES for own, at in zip(shares, owners, strict=True)):
            text = f"{name} explains the codes of each level, in the codebooks of levels {owners}: not those that z_q is made of"
            return {"metric": Finding(name, evidence=text), "metric_equivalent": Finding([name], evidence=text)}
    return {}


def _leading(probe: Probe) -> dict[str, float] | None:
    """Shares of the codes among codes of many norms, where latents are located and one metric is far ahead of the others."""
    layer = probe.layer
    layer.restore()
    books = redrawn(probe, 1)
    layer.set_codebook(books)
    out = layer.forward(probe.z, train=True, seed=probe.seed, trace=True)
    if not out.levels or any(level.z_c is None for level in out.levels):
        return None
    scores = _agreement(_pairs(out, books))
    second, first = sorted(scores.values())[-2:]
    return scores if first > MOST and first - second > LEAD else None


def _unit(z: Tensor) -> bool:
    return bool((z.double().norm(dim=1) - 1).abs().max() < 1e-3)
