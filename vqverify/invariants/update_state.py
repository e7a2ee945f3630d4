"""What an EMA codebook comes to over many steps, and that its state stays one state (theory T17-T21)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqverify.bounds import Clause, Violation, holds, within
from vqverify.case import Case
from vqverify.invariant import Undetermined, invariant
from vqverify.invariants.averages import EMA, Step, codes_from, divisor, kept, steps
from vqverify.invariants.measure import array, kept_within, norms, roundoff, tiny, trait
from vqverify.quantizer import Accumulators, Finding, Quantizer, per_subject
from vqverify.subject.guards import guarded
from vqverify.subject.plan import enter
from vqverify.subject.randomness import forked

STATE = ("learning=ema", "accumulators", "codebook")
REPEATS = 3
MOST_STEPS = 150


@invariant(
    "update.fixed_point",
    follows=("honesty.traits[decay]", "update.ema_law"),
    source="theory T17",
    needs=(*EMA, "decay", "replacement=none"),
    state="both",
    corners=("single", "on-code", "unit", "parallel"),
    mutants=("ema_not_written_back", "ema_sum_for_mean"),
    hint="write the quotient of this step's averages back: one that lags, or is never written, has another fixed point.",
)
def fixed_point(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A batch that is repeated with stable codes draws each used code to its cluster mean, by the factor γN/N′ a step."""
    passes = [{step.view.index: step for step in steps(subject, case)} for _ in range(REPEATS)]
    for index in passes[0]:
        if all(index in found for found in passes):  # a level may be left out at random
            level = tuple(found[index] for found in passes)
            yield from _contracted(subject, level, level[0].decay)


def _contracted(subject: Quantizer, level: tuple[Step, ...], decay: float) -> Iterator[Clause]:
    first, last = level[0], level[-1]
    stable = (first.n > 0) & (first.N > 1e-3)
    counts = first.N
    for step in level:
        stable &= (step.n == first.n) & (step.S == first.S).all(1)
        counts = kept(subject, decay * counts + (1 - decay) * step.n)
    past = decay ** len(level)
    # c − z̄ shrinks by γN/N′ a step: m = N c, so that over all steps m′ = γᵗm + (1 − γᵗ)S
    want = codes_from(subject, past * first.m + (1 - past) * first.S, counts)
    stable &= np.isfinite(want).all(1) & np.isfinite(last.e2).all(1)
    if not stable.any():
        return
    size = past * norms(first.m) + (1 - past) * first.size
    relative = (first.terms + len(counts) + 4 * len(level) + 16) * first.u
    length = np.maximum(norms(past * first.m + (1 - past) * first.S), tiny(subject))
    shown = norms(want) / length  # 1/N′, and for a direction 1/|m′|
    error = norms(last.e2 - want)[stable]
    said = f"|e − z̄| after {len(level)} steps against the factor γN/N′ a step, level {first.view.index}"
    allowed = relative * size * shown + last.kept(norms(want)) + tiny(subject)
    yield within(error, allowed[stable], "contraction", said)


def ways(subject: Quantizer) -> Iterator[str]:
    """Everything that writes the codebook: a training step, loading, and public methods that were seen to do so."""
    yield "step"
    yield "loaded"
    z = torch.randn(max(32, subject.domain.min_n), subject.domain.dim, generator=torch.Generator().manual_seed(17))
    for name in _candidates(type(subject.module)):
        subject.restore()
        before = subject.codebooks()
        try:
            _write(subject, name, z.to(subject.domain.dtype), seed=0)
            after = subject.codebooks()
        except Violation:
            continue
        if any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            yield name
    subject.restore()


def _candidates(kind: type[nn.Module]) -> Iterator[str]:
    """Settable properties (`name=`) and methods of one or two arguments (`name`) that `torch.nn.Module` has not."""
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        if name.startswith("_") or hasattr(nn.Module, name):
            continue
        if isinstance(found, property) and found.fset is not None:
            yield f"{name}="
        elif inspect.isfunction(found) and _required(found) in {1, 2}:
            yield name


def _required(method: Any) -> int:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if any(p.default is p.empty and p.kind is p.KEYWORD_ONLY for p in parameters):
        return -1
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return sum(p.default is p.empty and p.kind in positional for p in parameters)


def _write(subject: Quantizer, name: str, z: Tensor, *, seed: int) -> None:
    """Let a public method write the codebook: from a table of codes, from latents, or from latents and their codes.

    Raises:
        Violation: if it takes none of these.
    """
    module = subject.module
    x = enter(z, subject.domain.layouts[0])
    out = subject.forward(z, train=False, seed=seed)
    table = _same_codes(subject, z)
    module.train()
    with forked(seed), torch.no_grad():
        if name.endswith("="):
            with guarded(f"writing {name[:-1]}"):
                shown = getattr(module, name[:-1])
                fits = isinstance(shown, Tensor) and shown.numel() == table.numel()
                setattr(module, name[:-1], table.reshape(shown.shape) if fits else table)
            return
        method = getattr(module, name)
        if _required(getattr(type(module), name)) == 2:
            with guarded(f"{name}(latents, codes)"):
                method(x, _integers(out.raw))
            return
        try:
            with guarded(f"{name}(codebook)"):
                method(table)
        except Violation:
            with guarded(f"{name}(latents)"):
                method(x)


def _same_codes(subject: Quantizer, z: Tensor) -> Tensor:
    """Another table (K, Dc) for the first level, of the size of its codes."""
    book = subject.codebooks()[0]
    rows = torch.randn(book.shape, generator=torch.Generator().manual_seed(len(z))).to(book)
    rows = rows * book.square().mean().sqrt()
    return rows / rows.norm(dim=1, keepdim=True) if subject.domain.codebook == "sphere" else rows


def _integers(raw: Any) -> Tensor | None:
    """The first integer tensor of what a layer returned."""
    values = raw if isinstance(raw, tuple | list) else (raw if isinstance(raw, dict) else vars(raw)).values()
    return next((v for v in values if isinstance(v, Tensor) and not v.is_floating_point()), None)


@invariant(
    "update.consistent_state",
    follows=("update.ema_law", "update.initial_state"),
    source="theory T18, T21",
    needs=STATE,
    parts=ways,
    state="both",
    corners=("single", "on-code", "unit", "generic"),
    mutants=("ema_setter_forgets", "ema_sums_not_saved"),
    hint="whatever writes the codebook writes its sums too, m = N·e: otherwise the next step takes the codes back.",
)
def consistent_state(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """e = m/N (ρ m/N with smoothing) after every step, after loading, and after any method that writes the codebook."""
    shown, before = subject, subject.accumulators()
    if case.part in {"step", "loaded"}:
        subject.forward(case.z, train=True, seed=case.seed)
        if case.part == "loaded":
            shown = _twin(subject)
            shown.restore()
            with guarded("load_state_dict"):
                shown.module.load_state_dict(subject.module.state_dict())
    else:
        fresh = subject.codebooks()
        try:
            _write(subject, case.part or "", case.z, seed=case.seed)
        except Violation:
            return  # it takes other values; `interface.rejects_bad_input` asks how it refuses
        if all(torch.equal(a, b) for a, b in zip(fresh, subject.codebooks(), strict=True)):
            return
    yield from consistent(shown, before)


@per_subject
def _twin(subject: Quantizer) -> Quantizer:
    """A second construction of the layer."""
    return subject.build({}, subject.spec.seed + 1)


def consistent(subject: Quantizer, before: tuple[Accumulators, ...]) -> Iterator[Clause]:
    """Every code against its own accumulators: the quotient as it is, or smoothed.

    Args:
        subject: in the state that is judged.
        before: the accumulators before the last step. Where codes are replaced after it, ΣN is no more the total
            that the counts of the others were smoothed with.
    """
    free = subject.domain.codebook == "free"
    if free and subject.traits.get("smoothing", Finding(None)).value is None:
        raise Undetermined("smoothing is unknown, and with it what m is divided by")
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    replaces = trait(subject, "replacement", "none") != "none"
    lost = float(trait(subject, "smoothing", 0.0)) / max(float(trait(subject, "decay", 1.0)), 1e-3) * replaces
    everything = zip(before, subject.accumulators(), subject.codebooks(), strict=False)
    for index, (old, state, book) in enumerate(everything):
        N, m, e = array(state.counts), array(state.sums), array(book)
        total = max(float(array(old.counts).sum()), 1e-9)
        plain, smooth = _quotient(subject, m, N), _quotient(subject, m, divisor(subject, N))
        fine = (N > 1e-6) & np.isfinite(plain).all(1) & np.isfinite(smooth).all(1)
        if fine.any():
            error = np.minimum(norms(e - plain), norms(e - smooth))[fine]
            relative = (len(N) + e.shape[1] + 12) * u + len(N) * lost / total
            longest = np.maximum(norms(plain), norms(smooth))[fine]
            allowed = relative * longest + kept_within(book.dtype, longest, e.shape[1])
            yield within(error, allowed + tiny(subject), "e = m/N", f"|e − m/N| at level {index}")


def _quotient(subject: Quantizer, m: Any, N: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        e = m / N[:, None]
        return e / norms(e)[:, None] if subject.domain.codebook == "sphere" else e


@invariant(
    "update.long_run",
    kind="limit",
    mode="table",
    source="theory T20, T21",
    needs=STATE,
    corners=("single",),
    mutants=("ema_stalls",),
    hint="N and m of an unused code fall to subnormal numbers, where rounding holds them up: stop the decay at a floor, "
    "or leave unused codes alone.",
)
def long_run(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A long history leaves every code finite and, without smoothing, in the range of codes and data.

    It starts where unused counts are subnormal numbers, shortly before they stall (T20).
    """
    size = 0.25
    z = case.z * (size / float(case.z.abs().max().clamp_min(1e-30)))
    if trait(subject, "settable", False) and subject.domain.codebook == "free":
        subject.set_codebook([e * (size / e.abs().max().clamp_min(1e-30)) for e in subject.codebooks()])
    decay = min(max(float(trait(subject, "decay", 0.99)), 0.5), 1 - 1e-6)
    stall = 1 / (2 * (1 - decay))  # in least subnormals; sums are below it already, and counts fall to it
    count = min(MOST_STEPS, 4 + math.ceil(-math.log(3) / math.log(decay)))
    start = math.ceil(stall * min(3.0, decay**-count)) + 1
    books, old = subject.codebooks(), subject.accumulators()
    subject.set_accumulators([_few(state, e, start) for state, e in zip(old, books, strict=False)])
    for step in range(count):
        subject.forward(z, train=True, seed=case.seed + step, grad=False)
    reach = float(z.abs().max())
    for index, (before, after) in enumerate(zip(books, subject.codebooks(), strict=True)):
        bad = int((~after.isfinite()).any(1).sum())
        yield holds(not bad, "nonfinite", f"{bad} codes of level {index} are not finite after {count} steps")
        here = max(reach, float(before.abs().max()))
        if not bad and _bounded(subject, before):  # m = N·e itself was rounded, to half a least subnormal
            allowed = here * (1 + 2 * count * roundoff(subject)) + 0.5 / start
            yield within(
                after.abs().max(), allowed, "range", f"largest entry of a code of level {index}, {count} steps"
            )
        reach += here  # what a level leaves over is what the next one sees


def _bounded(subject: Quantizer, book: Tensor) -> bool:
    """Whether range is claimed: averages of latents that are seen, and no smoothing that moves unused codes."""
    plain = trait(subject, "smoothing", None) == 0 and subject.domain.codebook == "free"
    return plain and book.shape[1] == subject.domain.dim


def _few(old: Accumulators, book: Tensor, start: int) -> Accumulators:
    """Counts of so many least subnormals, and the sums that go with the codes: decay alone leads there."""
    kind = torch.finfo(old.counts.dtype)
    counts = torch.full_like(old.counts, kind.tiny * kind.eps * start)
    return Accumulators(counts, (book.double() * counts.double()[:, None]).to(old.sums))
