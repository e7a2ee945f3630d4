"""Two layers on the same inputs with the same codebook: the smallest one on which they differ, or none found.

A plays the oracle: bounds are those of its own rounding (in the coarser precision of the two), made of its inputs and
codebook. The examples, the search and the shrinker are the engine's: "B does what A does" is one more statement.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vqverify import engine
from vqverify.bounds import Clause, Violation, holds, within
from vqverify.case import Case, prepare
from vqverify.invariant import Invariant
from vqverify.invariants.agreement import EXACT_VALUE, STEPS, agree, learnt_agree
from vqverify.invariants.measure import SAFE, Array, array, norms, rotation_law_bound, roundoff, tiny, trait, views
from vqverify.quantizer import Node, Quantized, Spec
from vqverify.run.observed import Here, Observation, Side, There
from vqverify.run.request import RequestError, profile_called
from vqverify.subject import open_subject
from vqverify.subject.layer import Layer
from vqverify.witness import Witness

ASPECTS = ("value", "codes", "gradient", "loss", "state")
OF_LABEL = {"loss gradient": "loss", "codebook gradient": "loss", "nonfinite": "value", "raised": "value"}


@dataclass(frozen=True)
class Against:
    """The other side as plain data, so that a witness can be run again.

    Attributes:
        spec: how to build it.
        python: another interpreter to run it in, None for this one.
        compiled: whether a compiler goes around its passes.
    """

    spec: Spec
    python: str | None = None
    compiled: bool = False

    @contextmanager
    def opened(self) -> Generator[Side]:
        """The side, ready; its interpreter ends with the block.

        Raises:
            TargetError: if it cannot be imported, built or called.
        """
        if self.python is None:
            yield Here(open_subject(self.spec), self.compiled)
            return
        there = There(self.python, self.spec)
        try:
            yield there
        finally:
            there.close()


@dataclass(frozen=True)
class Difference:
    """One way in which two layers differ, on its smallest input."""

    label: str
    mode: str
    message: str
    witness: Witness


@dataclass(frozen=True)
class Comparison:
    """What comparing came to.

    Attributes:
        differences: smallest input first; empty if none was found.
        examples: inputs that both were given.
        deviations: the largest |a − b| seen, an aspect, where they agree.
        left_out: aspects that could not be compared, with the reason.
    """

    differences: tuple[Difference, ...]
    examples: int
    deviations: dict[str, float] = field(default_factory=dict[str, float])
    left_out: dict[str, str] = field(default_factory=dict[str, str])


def compare(a: Layer, b: Side, *, profile: str = "quick", aspects: Sequence[str] = ASPECTS) -> Comparison:
    """Look for an input on which two layers differ.

    Args:
        a: the layer that is taken to be right, in this process.
        b: the other one.
        profile: how long to look.
        aspects: of `ASPECTS`, what to compare.

    Raises:
        RequestError: if they cannot be given the same inputs and the same codebook.
    """
    judge = _Judge(a, b, tuple(aspects))
    row = Invariant(
        "compare", "B does what A does.", "", "law", "search", "both", (), (), "", (), judge.check,
        parts=lambda _: ("train", "eval"), corners=("single", "on-code", "tie", "unit", "generic"),
    )  # fmt: skip
    job = engine.Job(a.spec, (row.id,), profile_called(profile), a.spec.seed)
    outcome = engine.check(row, a, job)
    for result in outcome.results:
        if result.status == "error":
            raise RuntimeError(result.reason)
    found = [
        Difference(str(r.label), str(r.case), str(r.message), outcome.witnesses[r.witness])
        for r in outcome.results
        if r.status == "failed" and r.witness
    ]
    found.sort(key=lambda one: (one.witness.case.size(), ASPECTS.index(_aspect(one.label))))
    examples = sum({str(r.case): r.examples for r in outcome.results}.values())
    return Comparison(tuple(found), examples, judge.deviations, judge.left_out)


def again(a: Layer, b: Side, case: Case, aspects: Sequence[str] = ASPECTS) -> list[Clause]:
    """The clauses of one input that fail today."""
    clauses: list[Clause] = []
    try:
        prepare(a, case)
        clauses += _Judge(a, b, tuple(aspects)).check(a, case)
    except Violation as violation:
        clauses.append(Clause(violation.label, None, holds=False, message=violation.message))
    return [clause for clause in clauses if not clause.holds]


def _aspect(label: str) -> str:
    return label if label in ASPECTS else OF_LABEL.get(label, "value")


class _Judge:
    """Two sides that can be given the same inputs, and what was seen of them."""

    def __init__(self, a: Layer, b: Side, aspects: tuple[str, ...]) -> None:
        self.a, self.b, self.aspects = Here(a), b, aspects
        self.deviations: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        coarse = max(a.domain.dtype, b.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        self.bounds = replace(a, domain=replace(a.domain, dtype=coarse))
        if a.domain.dim != b.dim:
            raise RequestError(f"A takes latents of D = {a.domain.dim}, B of D = {b.dim}: no input suits both")
        shapes = [[tuple(book.shape) for book in side.own] for side in (self.a, b)]
        if shapes[0] != shapes[1]:
            raise RequestError(
                f"the codebooks of A have shapes {shapes[0]}, those of B {shapes[1]}: they cannot be the same"
            )
        self.writes = bool(shapes[0]) and self.a.settable and b.settable
        same = all(torch.equal(p.double(), q.double()) for p, q in zip(self.a.own, b.own, strict=True))
        if not (self.writes or same):
            raise RequestError("A and B are built with different codebooks, and one of them cannot be written")

    def check(self, subject: object, case: Case) -> Iterator[Clause]:
        """B does what A does.

        A step of the history in which they chose other codes leaves other states behind. It is then judged in place of
        what follows from it: where the codes were equally near, nothing is said.
        """
        del subject
        clauses = list(self._pass(case))
        if case.history and not all(clause.holds for clause in clauses):
            parted = self._parted(case)
            clauses = clauses if parted is None else list(self._pass(parted))
        self.a.layer.restore()
        yield from clauses

    def _parted(self, case: Case) -> Case | None:
        """The first step of the history in which the codes differ, as a case of its own."""
        for step, batch in enumerate(case.history):
            before = replace(
                case, z=batch, g=torch.zeros_like(batch), history=case.history[:step], seed=case.seed, part="train"
            )
            given = self._given(before)
            first, second = self.a.observe(given, train=True), self.b.observe(given, train=True)
            if not (first.raised or second.raised or self._same_codes(first, second)):
                return before
        return None

    def _pass(self, case: Case) -> Iterator[Clause]:
        """The pass of a case on both sides."""
        train = case.part == "train"
        case = self._given(case)
        first, second = self.a.observe(case, train=train), self.b.observe(case, train=train)
        if first.raised or second.raised:
            who = "both" if first.raised and second.raised else "A" if first.raised else "B"
            text = f"{who} raised: {first.raised or second.raised}"
            yield holds(who == "both", "raised", text)
            return
        want, got = (_as_pass(case.z, seen) for seen in (first, second))
        clauses = list(agree(self.bounds, case, want, got, train=train))
        if any(not clause.holds and clause.label != "loss" for clause in clauses) or not self._same_codes(
            first, second
        ):
            yield from self._wanted(clauses)  # what follows from other codes is no further difference
            return
        self._note("value", first.z_q, second.z_q)
        clauses += self._gradients(case, want, first, second, train=train)
        if train:
            clauses += self._state(case, first, second)
        if "loss" in self.aspects and (first.loss is None) != (second.loss is None):
            self.left_out["loss"] = f"{'A' if first.loss is None else 'B'} returns none"
        self._note("loss", first.loss, second.loss)
        yield from self._wanted(clauses)

    def _given(self, case: Case) -> Case:
        """Numbers that both sides hold exactly, and the same codebook."""
        coarse = self.bounds.domain.dtype

        def exact(tensor: Tensor) -> Tensor:
            return tensor.to(coarse).to(self.a.dtype)

        books = (case.codebook or self.a.own) if self.writes else None
        return replace(
            case,
            z=exact(case.z),
            g=exact(case.g),
            codebook=None if books is None else tuple(exact(book) for book in books),
            history=tuple(exact(batch) for batch in case.history),
        )

    def _wanted(self, clauses: Sequence[Clause]) -> Iterator[Clause]:
        return (clause for clause in clauses if _aspect(clause.label) in self.aspects)

    def _same_codes(self, first: Observation, second: Observation) -> bool:
        if first.codes is None or second.codes is None:
            if "codes" in self.aspects:
                self.left_out["codes"] = f"{'A' if first.codes is None else 'B'} returns none"
            return True
        return first.codes.shape == second.codes.shape and torch.equal(first.codes, second.codes)

    def _note(self, aspect: str, first: Tensor | None, second: Tensor | None) -> None:
        if first is None or second is None or aspect not in self.aspects or not first.numel():
            return
        off = float((first.double() - second.double()).abs().nan_to_num().max())
        self.deviations[aspect] = max(self.deviations.get(aspect, 0.0), off)

    def _gradients(
        self, case: Case, want: Quantized, first: Observation, second: Observation, *, train: bool
    ) -> Iterator[Clause]:
        z, q, g, u = array(case.z), array(want.z_q.rows), array(case.g), roundoff(self.bounds)
        relative = self._turning(case, z, train=train)
        keep = relative < SAFE
        known, depth = torch.from_numpy(keep), STEPS * (len(z) + 2 * z.shape[1])
        sizes = norms(g) * (1 + norms(q) / np.maximum(norms(z), 1e-30))
        if first.gradient is not None and second.gradient is not None:
            p, r = array(first.gradient), array(second.gradient)
            bound = (depth * u + relative) * (norms(p) + sizes) + tiny(self.bounds)
            self._note("gradient", first.gradient[known], second.gradient[known])
            yield within(norms(p - r)[keep], bound[keep], "gradient", "difference of Jᵀg at z")
        if first.loss_gradient is not None and second.loss_gradient is not None:
            p, r = array(first.loss_gradient), array(second.loss_gradient)
            bound = (depth * u + relative) * (norms(p) + norms(z) + norms(q)) + tiny(self.bounds)
            self._note("gradient", first.loss_gradient[known], second.loss_gradient[known])
            yield within(norms(p - r)[keep], bound[keep], "loss gradient", "difference of ∂loss/∂z")
        if keep.all() and len(first.codebook_gradients) == len(second.codebook_gradients):
            yield from self._codebook_gradients(first, second, depth * u, float((norms(z) + norms(q)).sum()))

    def _codebook_gradients(
        self, first: Observation, second: Observation, relative: float, size: float
    ) -> Iterator[Clause]:
        """Each code is pulled by the latents that chose it: a sum of differences, each as large as both ends."""
        for a, b in zip(first.codebook_gradients, second.codebook_gradients, strict=True):
            if a.shape == b.shape:
                self._note("gradient", a, b)
                p, r = array(a), array(b)
                bound = relative * (norms(p) + norms(r) + size) + tiny(self.bounds)
                yield within(norms(p - r), bound, "codebook gradient", "difference of ∂loss/∂e")

    def _turning(self, case: Case, z: Array, *, train: bool) -> Array:
        """Relative rounding of the estimator's Jacobian, a row; inf where no law is claimed."""
        family = trait(self.bounds, "estimator" if train else "estimator_in_eval")
        if family in EXACT_VALUE:
            return np.zeros(len(z))
        a = self.a.layer
        prepare(a, case)
        seen = list(views(a.forward(case.z, train=train, seed=case.seed, trace=True)))
        laws = [rotation_law_bound(view.z, view.q, roundoff(self.bounds)) for view in seen]
        return np.sum(laws, axis=0) if laws else np.full(len(z), np.inf)

    def _state(self, case: Case, first: Observation, second: Observation) -> Iterator[Clause]:
        pairs = [*zip(first.codebooks, second.codebooks, strict=True)]
        if len(first.counted) == len(second.counted):
            pairs += [*zip(first.counted, second.counted, strict=True)]
        else:
            self.left_out["state"] = "counts and sums: only one side has them; codebooks were compared"
        for p, r in pairs:
            self._note("state", p, r)
        size = float(torch.cat([case.z, *case.history]).double().norm(dim=1).max())
        n = sum(len(batch) for batch in (case.z, *case.history))
        yield from learnt_agree(
            self.bounds, tuple(p for p, _ in pairs), tuple(r for _, r in pairs), n * (1 + len(case.history)), size
        )


def _as_pass(z: Tensor, seen: Observation) -> Quantized:
    assert seen.z_q is not None
    value = seen.z_q.to(z.dtype)
    leaf, out = Node(z, lambda rows: rows), Node(value, lambda rows: rows)
    return Quantized(leaf, out, seen.codes, seen.loss, () if seen.loss is None else (seen.loss,))
