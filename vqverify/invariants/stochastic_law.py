"""The law of a draw: code frequencies against the softmax of distances or logits (theory T30)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import Array, array, norms, roundoff, trait, views
from vqverify.invariants.relaxation import relaxed_weights
from vqverify.quantizer import Quantized, Quantizer
from vqverify.statistics import Round, frequencies, fresh_seed, rejects_null

LATENTS, DRAWS = 4, 4000  # of the statistical design: latents, and independent draws at each
SPREAD = 3.0  # squared distances over T that the design aims at: several codes are likely, and unequally so
FLOOR = 1e-6  # below it float32 noise has no resolution


@dataclass(frozen=True)
class Law:
    """Logits b of the codes (M, K) and their scale s: p ∝ exp(s·b)."""

    name: str
    logits: Array
    scale: float
    slack: float = 0.0

    @property
    def probabilities(self) -> Array:
        """softmax(s·b), (M, K)."""
        x = self.scale * self.logits
        weights = np.exp(x - x.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)


def _drawing(subject: Quantizer) -> tuple[str, ...]:
    return ("train", "eval") if trait(subject, "stochastic") == "both" else (str(trait(subject, "stochastic")),)


@invariant(
    "stochastic.distribution",
    source="001 eq. 12; Jang 2017 eq. 1; theory T30",
    mode="statistical",
    parts=_drawing,
    needs=("codes", "codebook", "stochastic=train|eval|both", "estimator!=noise"),
    mutants=("temperature_inverted", "noise_shared", "noise_normal", "distance_rooted_twice"),
    hint="argmax(logits/T + Gumbel noise), noise −log(−log U) drawn for every latent and code; T divides.",
)
def distribution(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Code frequencies follow the claimed or identified law, independently for every latent.

    The law is softmax(−dᵖ/T), with a power p that is 1 or 2, or the argmax of logits with Gumbel noise.
    """
    design = _design(subject, case)
    first, second = (design.counts(fresh_seed(case.seed, "design", i)) for i in range(2))
    if np.array_equal(first, second) and (first.max(1) == first.sum(1)).all():
        return  # nothing is drawn here: the noise is elsewhere
    law = max(
        _laws(subject, design, first + second), key=lambda found: _likelihood(found, first + second), default=None
    )
    if law is None:
        return
    slack = law.slack + design.rounding(law)

    def test(seed: int) -> Round:
        return frequencies(design.counts(seed), law.probabilities, slack=slack, floor=FLOOR)

    yield rejects_null(test, case.seed, "law", f"codes do not follow {law.name} independently for every latent")


@dataclass(frozen=True)
class Design:
    """A few latents, each many times in one batch, so that noise shared by latents shows as much as a wrong law."""

    subject: Quantizer
    train: bool
    books: tuple[Tensor, ...]
    z: Tensor
    z_c: Array
    softmax: tuple[Array, float] | None

    def counts(self, seed: int) -> Array:
        """Codes of one pass, counted: (M, K)."""
        out = _pass(self.subject, self.books, self.z.repeat_interleave(DRAWS, 0), seed, train=self.train, trace=False)
        assert out.codes is not None
        drawn = out.codes[:, 0].cpu().numpy().reshape(LATENTS, DRAWS)
        return np.stack([np.bincount(row[row >= 0], minlength=len(self.books[0])) for row in drawn]).astype(np.float64)

    def rounding(self, law: Law) -> float:
        """Relative error of the probabilities in the layer's own arithmetic (T30)."""
        u, book = roundoff(self.subject), array(self.books[0])
        reach = (norms(self.z_c).max() + norms(book).max()) ** 2
        span = np.ptp(law.scale * law.logits)
        return float((2 * span + len(book) + 6) * u + 2 * law.scale * (book.shape[1] + 3) * u * reach) + 1e-4


def _pass(
    subject: Quantizer, books: tuple[Tensor, ...], z: Tensor, seed: int, *, train: bool, trace: bool
) -> Quantized:
    subject.restore()
    if trait(subject, "settable", default=False):
        subject.set_codebook(books)
    return subject.forward(z, train=train, seed=seed, trace=trace, grad=trace)


def _design(subject: Quantizer, case: Case) -> Design:
    train = case.part == "train"
    rng = np.random.default_rng(fresh_seed(case.seed, "latents"))
    subject.restore()
    books = subject.codebooks()
    claim = subject.claims.get("temperature")
    if trait(subject, "settable", default=False) and subject.domain.codebook == "free":
        size = np.sqrt(SPREAD * (1.0 if claim is None else float(claim.value)) / (2 * books[0].shape[1]))
        books = tuple(torch.from_numpy(size * rng.standard_normal(book.shape)).to(book) for book in books)
    first, dim = array(books[0]), subject.domain.dim
    z = 0.5 * rng.standard_normal((LATENTS, dim))
    if first.shape[1] == dim:  # between a few codes
        z = np.stack([first[rng.choice(len(first), min(3, len(first)), replace=False)].mean(0) for _ in range(LATENTS)])
    rows = torch.from_numpy(z).to(subject.domain.dtype)
    batch = rows.repeat(max(1, -(-subject.domain.min_n // LATENTS)), 1)
    out = _pass(subject, books, batch, case.seed, train=train, trace=True)
    located = bool(out.levels) and out.levels[0].z_c is not None
    z_c = next(views(out)).z[:LATENTS] if located else array(rows)
    return Design(subject, train, books, rows, z_c, _relaxation(subject, books, rows, case.seed))


def _relaxation(subject: Quantizer, books: tuple[Tensor, ...], z: Tensor, seed: int) -> tuple[Array, float] | None:
    """Logarithms of the softmax weights that the graph holds, (M, K), with their error; None where there are none.

    Those of an eval pass, where it has no noise; else the mean of many noisy ones, which shifts all logits by one constant.
    """
    for train in (False, True):
        noisy = train or trait(subject, "stochastic") in {"eval", "both"}
        rows = z.repeat_interleave(DRAWS if noisy else max(1, -(-subject.domain.min_n // LATENTS)), 0)
        out = _pass(subject, books, rows, seed, train=train, trace=True)
        for weights in relaxed_weights(out, len(books[0])):
            if len(weights) == len(rows) and (array(weights) > FLOOR**4).all():
                logs = np.log(array(weights)).reshape(LATENTS, -1, len(books[0]))
                error = logs.std(1).max() / np.sqrt(logs.shape[1]) if noisy else 0.0
                return logs.mean(1), float(error)
    return None


def _laws(subject: Quantizer, design: Design, counts: Array) -> Iterator[Law]:
    """Correct laws that the layer may follow: at the declared temperature, else at the one that fits best."""
    book, z = array(design.books[0]), design.z_c
    claim = subject.claims.get("temperature")
    relaxed = trait(subject, "estimator") in {"gumbel", "softmax"}
    claimed = set() if claim is None else {1 / float(claim.value)} | ({1.0} if relaxed else set())
    bases: list[tuple[str, Array, set[float], float]] = []
    if book.shape[1] == z.shape[1]:
        squares, products = ((z[:, None] - book[None]) ** 2).sum(-1), z @ book.T
        cosines = products / np.maximum(norms(z)[:, None] * norms(book)[None], 1e-30)
        metrics = {
            "euclidean": [("softmax(−d²/T)", -squares), ("softmax(−d/T)", -np.sqrt(squares))],
            "cosine": [("softmax(cos/T)", cosines)],
            "dot": [("softmax(⟨z, e⟩/T)", products)],
        }
        known = metrics.get(str(trait(subject, "metric")))
        every = [base for bases_ in metrics.values() for base in bases_ if _coarsely(_fitted(*base, counts), counts)]
        bases += [(name, logits, claimed, 0.0) for name, logits in (every if known is None else known)]
    if design.softmax is not None:
        # the relaxation's temperature does not change the law of the codes; a temperature of the draw stands in both
        logits, error = design.softmax
        bases.append(("softmax(logits)", logits, set() if claim is None else {1.0, float(claim.value)}, error))
    for name, logits, scales, error in bases:
        for law in (
            [Law(name, logits, scale) for scale in scales] if claim is not None else [_fitted(name, logits, counts)]
        ):
            # what an error of the logits does to a probability: twice, for its own and for the others'
            yield replace(law, slack=law.slack + float(np.expm1(min(12 * law.scale * error, 1.0))))


def _coarsely(law: Law, counts: Array) -> bool:
    """Whether a law with its best scale is near the frequencies: the metric of a layer that always draws is told so."""
    shares = counts / counts.sum(1, keepdims=True)
    return bool((np.abs(shares - law.probabilities).sum(1) / 2 < 0.2).all())


def _fitted(name: str, logits: Array, counts: Array) -> Law:
    """The scale of largest likelihood (concave in it), and what its error does to the probabilities."""
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        law = Law(name, logits, float(np.exp(middle)))
        slope = ((counts - counts.sum(1, keepdims=True) * law.probabilities) * logits).sum()
        low, high = (middle, high) if slope > 0 else (low, middle)
    law = Law(name, logits, float(np.exp((low + high) / 2)))
    p = law.probabilities
    away = logits - (p * logits).sum(1, keepdims=True)
    information = (counts.sum(1, keepdims=True) * p * away**2).sum()
    error = 6 / np.sqrt(max(information, 1e-30)) * np.abs(away[p > FLOOR]).max(initial=0.0)
    return Law(name, logits, law.scale, slack=float(min(0.5, np.expm1(min(error, 1.0)))))


def _likelihood(law: Law, counts: Array) -> float:
    return float((counts * np.log(np.maximum(law.probabilities, 1e-30))).sum())
