"""Layers that draw their codes: the law of the draw, and that a draw is one code (theory T30)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.lookup import forward_bound
from vqverify.invariants.measure import Array, View, array, norms, roundoff, trait, views
from vqverify.quantizer import Quantized, Quantizer
from vqverify.statistics import Round, frequencies, fresh_seed, rejects_null

LATENTS, DRAWS = 4, 4000  # of the statistical design: latents, and independent draws at each
TEMPERATURES = ("temperature", "temp", "tau", "sample_codebook_temp")
SPREAD = 3.0  # squared distances over T that the design aims at: several codes are likely, and unequally so
FLOOR = 1e-6  # below it float32 noise has no resolution


def _modes(subject: Quantizer) -> tuple[str, ...]:
    """Modes in which a hard code is owed: not where a mixture or a noisy value is what the layer says it returns."""
    claim = subject.claims.get("estimator")
    if claim is not None and claim.value == "softmax":
        return ()
    return ("eval",) if trait(subject, "estimator") == "noise" else ("train", "eval")


@invariant(
    "stochastic.hard",
    source="Jang 2017 §2.2; theory T30",
    needs=("codes", "codebook", "structure!=scalar|sign"),
    parts=_modes,
    corners=("tie", "single", "on-code", "unit"),
    mutants=("soft_mixture", "mixture_in_eval", "gumbel_left_soft"),
    hint="softmax(−d) @ codes is a mixture: take hard + soft − soft.detach(), or index the codebook; say hard=True.",
)
def hard(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Where codes are returned, z_q is one code of the codebook and no mixture of several."""
    train, u = case.part == "train", roundoff(subject)
    out = subject.forward(case.z, train=train, seed=case.seed, trace=True)
    located = out.codes is not None and len(out.levels) == len(out.codebook) == out.codes.shape[1]
    clauses = list(_codes_of(subject, out, u)) if located else []
    if located and all(clause.holds for clause in clauses):
        yield from clauses
        return
    # no row of the codebook that was read, or none was found: a mixture is then what varies within a cell
    within_cell = list(_piecewise_constant(subject, case, u, train=train))
    yield from clauses if clauses and not all(clause.holds for clause in within_cell) else within_cell


def _codes_of(subject: Quantizer, out: Quantized, u: float) -> Iterator[Clause]:
    """Each level's code against its row of the codebook."""
    assert out.codes is not None
    for index, (level, table) in enumerate(zip(out.levels, out.codebook, strict=True)):
        k, book, value = out.codes[:, index].cpu().numpy(), array(table), array(level.q_c.rows)
        z = value if level.z_c is None else array(level.z_c.rows)  # without an estimator, q is the code itself
        view = View(index, level, z, book[np.clip(k, 0, len(book) - 1)], k, book)
        bound = forward_bound(subject, view, u)
        keep = np.isfinite(bound) & (view.k >= 0)
        if keep.any():
            yield within(norms(value - view.q)[keep], bound[keep], "mixture", f"|z_q − e[k]| at level {index}")


def _piecewise_constant(subject: Quantizer, case: Case, u: float, *, train: bool) -> Iterator[Clause]:
    """Code space was not located: latents a small step apart that share their codes share z_q."""
    subject.restore()
    if case.codebook is not None:
        subject.set_codebook(case.codebook)
    books = subject.codebooks()
    step = 2.0**-6 * (case.z + case.z.abs().mean() + 2.0**-6)
    out = subject.forward(torch.cat([case.z, case.z + step]), train=train, seed=case.seed)
    if out.codes is None:
        return
    n = len(case.z)
    rows, codes = array(out.z_q.rows), out.codes.cpu().numpy()
    same = (codes[:n] == codes[n:]).all(1) & (codes[:n] >= 0).all(1)
    if same.any():
        size = (
            max(float(norms(array(book)).max()) * len(book) for book in books)
            + norms(array(case.z)).max()
            + norms(rows).max()
        )
        error = norms(rows[:n] - rows[n:])[same]
        yield within(error, 64 * u * size, "mixture", "z_q of two latents with the same codes differs")


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


def relaxed_weights(out: Quantized, size: int) -> Iterator[Tensor]:
    """Softmax weights over the codes in the graph behind z_q, (N, K), last first."""
    for node in softmaxes(out.z_q.tensor.grad_fn):
        rows = code_axis_last(node, node._saved_result, size)  # noqa: SLF001  (autograd's documented attribute)
        if rows is not None:
            yield rows


def code_axis_last(node: Any, value: Tensor, size: int) -> Tensor | None:
    """A tensor shaped as a softmax's result, (N, K); None if its axis has another length than K."""
    axis = node._saved_dim  # noqa: SLF001
    axis = axis - 2**64 if axis >= 2**63 else axis
    return value.movedim(axis, -1).reshape(-1, size) if value.shape[axis] == size else None


def softmaxes(root: Any) -> Iterator[Any]:
    """The softmax operations in the graph behind a tensor, last first."""
    seen: set[Any] = set()
    queue = [root]
    while queue:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("SoftmaxBackward"):
            yield node
        queue.extend(parent for parent, _ in node.next_functions)


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


def temperature_argument(subject: Quantizer) -> str | None:
    """Name of the constructor's temperature, if it has one."""
    names = {*subject.spec.kwargs, *inspect.signature(type(subject.module).__init__).parameters}
    return next((name for name in TEMPERATURES if name in names), None)


def _limits(subject: Quantizer) -> tuple[str, ...]:
    drawn = trait(subject, "estimator") not in {"gumbel", "softmax"} and trait(subject, "metric") == "euclidean"
    cold = temperature_argument(subject) and drawn
    return ("seed", "cold") if cold else ("seed",)


@invariant(
    "stochastic.limits",
    source="theory T30",
    mode="table",
    needs=("codes", "codebook", "stochastic=train|eval|both"),
    parts=_limits,
    corners=("single", "unit", "on-code"),
    mutants=("temperature_inverted", "own_generator"),
    hint="logits are divided by T; noise comes from the global generators, or from one that is part of the state.",
)
def limits(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """As T → 0 the code drawn is the nearest one; a seed gives the same sample twice."""
    if case.part == "seed":
        for train in (True, False):
            outs: list[Quantized] = []
            for _ in range(2):
                subject.restore()
                outs.append(subject.forward(case.z, train=train, seed=case.seed))
            same = (
                torch.equal(outs[0].codes, outs[1].codes)
                if outs[0].codes is not None and outs[1].codes is not None
                else True
            )
            yield holds(
                same,
                "seed",
                f"two {'train' if train else 'eval'} passes with one seed from one state draw different codes",
            )
        return
    name = temperature_argument(subject)
    assert name is not None
    cold = 2.0**-20
    twin = subject.build({name: cold})
    twin.restore()
    out = twin.forward(case.z, train=True, seed=case.seed, trace=True)
    for view in views(out):
        distances = norms(view.z[:, None] - view.codebook[None])
        best = np.sort(distances, axis=1)
        # d and d² both: a gap of 60 T leaves K·e⁻⁶⁰ to any other code
        gap = best[:, 1] - best[:, 0] if best.shape[1] > 1 else np.full(len(best), np.inf)
        reach = norms(view.z) + norms(view.codebook).max(initial=0.0)
        clear = (
            np.minimum(gap, gap * best[:, min(1, best.shape[1] - 1)]) > 60 * cold + 64 * roundoff(twin) * (1 + reach**2)
        ) & (view.k >= 0)
        wrong = clear & (view.k != distances.argmin(1))
        if clear.any():
            yield holds(
                not wrong.any(), "cold", f"at {name}={cold:g}, {wrong.sum()} of {clear.sum()} codes are not the nearest"
            )


def _relaxed(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where the gradient of z_q runs through a softmax over the codes."""
    books = subject.codebooks()
    if len(books) != 1 or books[0].shape[1] != subject.domain.dim:
        return ()
    z = torch.randn(max(4, subject.domain.min_n), subject.domain.dim, generator=torch.Generator().manual_seed(0))
    out = subject.forward(z.to(subject.domain.dtype), train=True)
    return (None,) if any(True for _ in relaxed_weights(out, len(books[0]))) else ()


@invariant(
    "stochastic.st_value",
    source="Jang 2017 §2.2; theory T30",
    needs=("codes", "codebook"),
    state="both",
    parts=_relaxed,
    mutants=("gumbel_gradient_sign", "gumbel_gradient_scaled"),
    follows=("stochastic.hard",),
    corners=("single", "unit", "on-code"),
    hint="weights = hard + soft − soft.detach(); z_q = weights @ codes: value from hard, gradient from soft, unscaled.",
)
def st_value(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A straight-through sample carries the soft gradient: relaxed weights receive that of their mixture, g·eᵀ."""
    book = array(subject.codebooks()[0])
    out = subject.forward(case.z, train=True, seed=case.seed)
    found = softmaxes(out.z_q.tensor.grad_fn)
    node = next((n for n in found if code_axis_last(n, n._saved_result, len(book)) is not None), None)  # noqa: SLF001
    if node is None:
        return
    seen: list[Tensor] = []
    handle = node.register_prehook(lambda grads: seen.append(grads[0]))
    g = case.g + 1
    try:
        subject.vjp(out, g)
    finally:
        handle.remove()
    yield holds(bool(seen), "detached", "no gradient reaches the relaxed weights")
    rows = code_axis_last(node, seen[0], len(book)) if seen else None
    if rows is not None and len(rows) == len(g):
        want = array(g) @ book.T
        allowed = (book.shape[1] + 8) * roundoff(subject) * norms(array(g))[:, None] * norms(book)[None]
        yield within(array(rows) - want, allowed, "soft gradient", "|∂/∂y − g·eᵀ|")
