"""Where gradients go and where not: from z_q to the latents, not around the codes, not into the codebook.

Theory T14, T16, T34.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, Violation, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import Array, array, norms, roundoff, stream, traced, trait
from vqverify.invariants.pulls import gradient_at
from vqverify.invariants.weights import WEIGHTS, constructed
from vqverify.quantizer import Quantized, Quantizer
from vqverify.subject.bare import BareEstimator
from vqverify.subject.capture import gradient
from vqverify.subject.guards import guarded

SHARES = {"gumbel", "softmax", "sampled", "noise", "other"}  # estimators whose task gradient reaches the codes
ALIKE = 0.999  # cosine of gradients of one term, but for rounding
MOST_WEIGHTS = ("_weight", "_cost", "_lambda", "_coef", "_coeff", "_gamma")


def _cut(subject: Quantizer, out: Quantized, g: Tensor) -> tuple[Array, Array]:
    """The gradient that z receives, and what is left of it where the codes of all levels pass none on."""
    whole = array(subject.vjp(out, g))
    handles = [level.q_c.tensor.register_hook(torch.zeros_like) for level in out.levels]
    try:
        return whole, array(subject.vjp(out, g))
    finally:
        for handle in handles:
            handle.remove()


def _carried(subject: Quantizer) -> tuple[None, ...]:
    """Applies where some of the gradient runs through the codes.

    Where none does, the estimator is around them (noise in place of an error, or one estimator for a whole stack).
    """
    z = torch.randn((max(8, subject.domain.min_n), subject.domain.dim), generator=torch.Generator().manual_seed(7))
    subject.restore()
    try:
        out = subject.forward(z.to(subject.domain.dtype), train=True, trace=True)
        if not out.levels or not all(level.q_c.tensor.requires_grad for level in out.levels):
            return ()
        return () if np.array_equal(*_cut(subject, out, torch.ones_like(out.z.rows))) else (None,)
    except Violation:
        return (None,)
    finally:
        subject.restore()


@invariant(
    "estimator.no_bypass",
    source="definition of a bottleneck; theory T34",
    needs=("levels", "estimator!=exact|hessian"),
    parts=_carried,
    state="both",
    mutants=("gradient_bypass",),
    hint="nothing but the codes may carry gradient: look for a latent added back to z_q, with or without a detached twin.",
)
def no_bypass(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """No gradient reaches the latents around the quantizer: with the paths through the levels' codes cut, nothing is left.

    Margin: cutting is exact: a right layer's margin is 0.
    """
    out = traced(subject, case)
    if not out.levels or not all(level.q_c.tensor.requires_grad for level in out.levels):
        return
    g = torch.ones_like(case.g) + case.g
    whole, around = _cut(subject, out, g)
    finite_rows = np.isfinite(whole).all(1)
    # cutting is exact: what is left over is a path of its own
    allowed = 4 * roundoff(subject) * norms(array(g))
    yield within(
        norms(around)[finite_rows], allowed[finite_rows], "bypass", "gradient that reaches z with every code cut off"
    )


def _leaks(subject: Quantizer) -> tuple[str, ...]:
    """Latents that train with the layer, and latents of a frozen encoder; not where a share of the gradient is declared."""
    said = {
        name: str(subject.claims[name].value)
        for name in ("learning", "estimator", "synchronized")
        if name in subject.claims
    }
    declared = "decoder" in said.get("learning", "") or said.get("estimator") == "synchronized"
    declared = declared or float(said.get("synchronized", 0)) > 0
    numbers = constructed(subject)
    family = trait(subject, "estimator")
    unknown = family is None and not (trait(subject, "hard") and trait(subject, "deterministic"))  # relaxed, perhaps
    shared = family in SHARES or unknown or any(numbers[n] > 0 for n in numbers if n.startswith("sync"))
    grows = any(parameter.requires_grad for parameter in subject.module.parameters())
    return ("training", "frozen encoder") if grows and not declared and not shared else ()


@invariant(
    "estimator.no_codebook_leak",
    source="van den Oord 2017 §3.2; theory T16, T23",
    needs=("codebook",),
    parts=_leaks,
    corners=("single", "on-code", "unit"),
    mutants=("codebook_leak", "codebook_leak_when_frozen"),
    hint="q + (z − sg z) leaves q in the graph: detach it, and not only where z needs a gradient.",
)
def no_codebook_leak(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A loss on z_q alone gives the codebook no gradient, also where the latents need none."""
    out = subject.forward(
        case.z, train=True, seed=case.seed, grad=True, via=_frozen if case.part != "training" else None
    )
    value = (out.z_q.rows * (1 + case.g)).sum()
    if not value.requires_grad:
        yield holds(condition=True, label="leak", message="")
        return
    for level, found in enumerate(subject.codebook_gradients(value)):
        where = "" if case.part == "training" else ", whose latents need no gradient,"
        size = float(found.abs().max()) if found.numel() else 0.0
        yield holds(
            not size, "leak", f"a loss on z_q{where} gives the codes of level {level} a gradient (up to {size:.3g})"
        )


def _frozen(layer: object, x: Tensor) -> object:
    """The pass on latents of a frozen encoder: parameters still train."""
    assert callable(layer)
    return layer(x.detach())


def _undeclared(subject: Quantizer) -> tuple[str | None, ...]:
    """Unless it is declared that no gradient is estimated."""
    claim = subject.claims.get("estimator")
    return () if claim is not None and claim.value == "none" else (None,)


@invariant(
    "estimator.alive",
    mode="table",
    source="definition of an estimator; theory T1",
    parts=_undeclared,
    corners=("generic",),
    mutants=("gradient_times_zero", "rounding_without_estimator"),
    hint="a term such as 0·z keeps z_q in the graph and sends nothing; round, sign and argmax have derivative 0.",
)
def alive(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Where z_q of a training pass hangs on the latents in the graph, some gradient arrives there."""
    sent = _arriving(subject, case)
    yield holds(sent != 0, "cancelled", "z_q hangs on z in the graph, and the gradient that z receives is exactly 0")


def _trained(subject: Quantizer) -> tuple[str, ...]:
    """A layer whose loss trains the encoder means to train it; one without may be made for a frozen one."""
    if not _undeclared(subject):
        return ()
    z = torch.randn(max(8, subject.domain.min_n), subject.domain.dim, generator=torch.Generator().manual_seed(5))
    try:
        out = subject.forward(z.to(subject.domain.dtype), train=True)
        with guarded("backward of the loss"):
            pulled = [gradient(loss.sum(), out.z.tensor) for loss in out.losses if loss.requires_grad]
    except Violation:
        pulled = []  # interface.runs says so
    return ("beside a loss",) if any(found is not None and found.any() for found in pulled) else ("without a loss",)


@invariant(
    "estimator.reaches",
    kind="contract",
    hardening=("without a loss",),
    mode="table",
    source="definition of an estimator; van den Oord 2017 §3.1",
    parts=_trained,
    corners=("generic",),
    follows=("estimator.alive",),
    mutants=("codes_without_estimator",),
    hint="a layer that returns its codes as they are trains no encoder by the task: add z + (q − z).detach(), or claim "
    "estimator=none.",
)
def reaches(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """In training the latents receive a gradient from z_q: hardening where no loss of the layer trains them either."""
    yield holds(bool(_arriving(subject, case)), "nothing", "nothing that is done to z_q gives the latents a gradient")


def _arriving(subject: Quantizer, case: Case) -> float | None:
    """Largest entry of the gradient that the latents receive from z_q; None where nothing connects them."""
    module = subject.module
    if isinstance(module, BareEstimator) and module.of_task:
        return float(subject.grad(case.z, lambda x: (x.sin() * (1 + case.g)).sum(), seed=case.seed).abs().max())
    out = subject.forward(case.z, train=True, seed=case.seed)
    if not out.z_q.tensor.requires_grad:
        return None
    with guarded("backward"):
        rows = out.z_q.rows
        found = gradient(rows, out.z.tensor, torch.ones_like(rows) + case.g.to(rows))
    return None if found is None else float(found.abs().max())


def _commitments(subject: Quantizer) -> tuple[str, ...]:
    numbers = constructed(subject)
    return tuple(name for name in WEIGHTS if name in numbers)


def _all_weights(subject: Quantizer) -> dict[str, float]:
    """Every weight of the loss that the constructor takes, at 0, but for those of the codebook's own term."""
    return {name: 0.0 for name in constructed(subject) if name.endswith(MOST_WEIGHTS) and "codebook_weight" not in name}


def _apart(weighted: Quantizer, twin: Quantizer, seed: int) -> bool:
    """Whether what the twin's loss gives is another thing than what the weight adds; a weight that adds nothing is ignored.

    Seen on latents of many directions: for a single one, far from all codes, every term points the same way.
    """
    books = weighted.codebooks()
    size = float(books[0].abs().mean()) if books else 1.0
    z = (size or 1.0) * torch.randn(max(16, weighted.domain.min_n), weighted.domain.dim, generator=stream(seed))
    given: list[Tensor] = []
    for layer in (weighted, twin):
        layer.restore()
        out = layer.forward(z.to(weighted.domain.dtype), train=True, seed=seed)
        if out.loss is None:
            return False
        given.append(gradient_at(out, out.z.tensor).double().flatten())
    added = given[0] - given[1]
    return bool(added.any()) and float(torch.cosine_similarity(added, given[1], dim=0).abs()) < ALIKE


@invariant(
    "estimator.zero_loss_weight",
    source="van den Oord 2017 eq. 3; theory T16",
    mode="table",
    needs=("loss",),
    parts=_commitments,
    corners=("single", "unit", "generic"),
    mutants=("zero_weight_is_default", "weight_floor"),
    follows=("loss.gradients", "loss.terms"),
    hint="`weight or default` takes 0 for absent: ask for None; no floor and no second, fixed weight on the same term.",
)
def zero_loss_weight(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """With the commitment weight at 0, and every other weight, a loss adds nothing to the latents' gradient.

    What it adds may be a term that no weight names, an entropy: then it is no multiple of what the weight adds.
    """
    assert case.part is not None
    try:
        twin = subject.build({**_all_weights(subject), case.part: 0.0})
        out = twin.forward(case.z, train=True, seed=case.seed)
    except Violation:
        yield holds(condition=True, label="refused", message="")  # 0 is not accepted, and said so
        return
    if out.loss is None:
        return
    with guarded("backward of the loss"):
        left = float(gradient_at(out, out.z.tensor).abs().max())
    if left and _apart(
        subject if constructed(subject)[case.part] else subject.build({case.part: 1.0}), twin, case.seed
    ):
        return
    yield holds(not left, "loss leaks", f"with {case.part} = 0 the loss gives z a gradient (up to {left:.3g})")
