"""How a code is chosen: the metric under which the chosen code is the best one, for most generic latents."""

from __future__ import annotations

import torch
from torch import Tensor

from vqverify.identify.capability import redrawn
from vqverify.identify.probes import Findings, Probe, Unknown, attempt, latents_at
from vqverify.quantizer import Finding, Quantized

AGREES = 0.8
MOST, LEAD = 0.6, 0.15  # a metric that explains most codes, and no other near it: the search is meant to be that
CERTAIN = 0.9  # of the codes in a codebook that weights were not fitted to
TERMS = ("z·c", "|c|²", "|c|", "(Σc)²", "Σc")


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


def agreement(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
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
    scores = agreement(_pairs(probe.train, list(probe.train.codebook or layer.codebooks())))
    free = not (layer.plan.sphere or layer.domain.codebook == "sphere")
    if free and max(scores.values()) > AGREES:  # codes of many norms tell the metrics apart
        apart = agreement(_pairs(*_redrawn_pass(probe, 1)))
        scores = apart if max(apart.values()) > AGREES else scores
    elif max(scores.values()) <= AGREES:  # codes may be drawn at random in training: those of eval then
        layer.restore()
        codes = layer.forward(probe.z, train=False).codes
        z = latents_at(probe.train, 0)
        if codes is not None:
            scores = agreement([(z, (probe.train.codebook or layer.codebooks())[0], codes[:, 0])])
    leading = _leading(probe) if free and max(scores.values()) <= AGREES else None
    scores = leading or scores
    best = max(scores, key=lambda name: scores[name])
    text = f"{best.partition(':')[0]} explains {scores[best]:.0%} of the codes of {len(probe.z)} generic latents"
    if scores[best] <= AGREES and leading is None:
        if known := _exchanged(probe.train) or (_misscored(probe) if free else {}):
            return known
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
        [agreement([(latents_at(out, level), e, out.codes[:, level])]) for e in out.codebook] for level in range(count)
    ]
    for name in ("euclidean", "cosine"):
        owners = [max(range(count), key=lambda at, own=own: own[at][name]) for own in shares]
        if len(set(owners)) == count and all(own[at][name] > AGREES for own, at in zip(shares, owners, strict=True)):
            text = f"{name} explains the codes of each level, in the codebooks of levels {owners}: not those that z_q is made of"
            return {"metric": Finding(name, evidence=text), "metric_equivalent": Finding([name], evidence=text)}
    return {}


def _leading(probe: Probe) -> dict[str, float] | None:
    """Shares of the codes among codes of many norms, where latents are located and one metric is far ahead of the others."""
    out, books = _redrawn_pass(probe, 1)
    if not out.levels or any(level.z_c is None for level in out.levels):
        return None
    scores = agreement(_pairs(out, books))
    second, first = sorted(scores.values())[-2:]
    return scores if first > MOST and first - second > LEAD else None


def _misscored(probe: Probe) -> Findings:
    """A search by z·c and another function of c than |c|²/2: its weights explain the codes in another codebook, too."""
    scored: list[list[tuple[Tensor, Tensor]]] = []
    for seed in (1, 2):
        out, books = _redrawn_pass(probe, seed)
        if not out.levels or any(level.z_c is None for level in out.levels):
            return {}
        scored.append([(_terms(z, e), codes) for z, e, codes in _pairs(out, books)])
    weights = _fitted(scored[0])
    right = [(terms @ weights).argmax(1) == codes for terms, codes in scored[1]]
    share = float(torch.cat(right).double().mean())
    if share <= CERTAIN or weights[0] <= 0:
        return {}
    shown = " ".join(f"{float(w / weights[0]):+.2g}{name}" for w, name in zip(weights[1:], TERMS[1:], strict=True))
    text = f"z·c {shown} explains {share:.0%} of the codes in another codebook; the nearest code has z·c −0.5|c|²"
    return {
        "metric": Finding("euclidean", evidence=text, mistake="another function of c than |c|²"),
        "metric_equivalent": Finding(["euclidean"], evidence=text),
    }


def _terms(z: Tensor, e: Tensor) -> Tensor:
    """What known searches compare codes by, (N, K, terms)."""
    z, e = z.double(), e.double()
    norm = e.norm(dim=1)
    alone = torch.stack([norm.square(), norm, e.sum(1).square(), e.sum(1)], dim=1)
    return torch.cat([(z @ e.t())[..., None], alone.expand(len(z), -1, -1)], dim=2)


def _fitted(scored: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Weights of the terms whose largest sum is the chosen code's, by logistic regression."""
    weights = torch.zeros(len(TERMS), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        each = [torch.nn.functional.cross_entropy(terms @ weights, codes) for terms, codes in scored]
        loss = torch.stack(each).mean() + 1e-4 * weights.square().sum()
        loss.backward()
        return loss.detach()

    with torch.enable_grad():
        solver.step(closure)
    return weights.detach()


def _redrawn_pass(probe: Probe, seed: int) -> tuple[Quantized, list[Tensor]]:
    """A training pass with codes of many norms, and these codes."""
    layer = probe.layer
    layer.restore()
    books = redrawn(probe, seed)
    layer.set_codebook(books)
    return layer.forward(probe.z, train=True, seed=probe.seed, trace=True), books


def _unit(z: Tensor) -> bool:
    return bool((z.double().norm(dim=1) - 1).abs().max() < 1e-3)
