"""Masks, flags and the optional arguments of a pass."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqverify.bounds import Clause, Violation, holds, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import STEPS, agree, learnt, learnt_agree, select
from vqverify.invariants.interface import SOURCE, backward, finite_state, received
from vqverify.invariants.interface_batching import still, train_repeats
from vqverify.invariants.measure import SAFE, array, norms, rotation_law_bound, roundoff, trait
from vqverify.quantizer import Quantizer, per_subject
from vqverify.subject.plan import sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vqverify.quantizer import Quantized, Via

HUGE = 1e4
SLIPS = (NameError, AttributeError, ZeroDivisionError)  # what nobody raises on purpose


def parameters(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Named parameters of a callable, none if it has no signature."""
    try:
        return dict(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return {}


def method(subject: Quantizer) -> Callable[..., Any]:
    """The method that makes a pass."""
    name = getattr(getattr(subject, "plan", None), "method", "__call__")
    return subject.module.forward if name == "__call__" else getattr(subject.module, name)


@per_subject
def mask_layout(subject: Quantizer) -> str | None:
    """The first layout in which the layer takes a mask with one entry a latent; None without one."""
    if "mask" not in parameters(method(subject)):
        return None
    before = subject.snapshot()
    z = torch.zeros(max(2, subject.domain.min_n), subject.domain.dim, dtype=subject.domain.dtype)
    everything = torch.ones(len(z), dtype=torch.bool)
    for layout in subject.domain.layouts:
        try:
            subject.forward(z, seed=0, grad=False, layout=layout, via=masked(everything, layout))
        except Violation:
            continue
        finally:
            subject.restore(before)
        return layout
    return None


def masked(keep: Tensor, layout: str) -> Via:
    """A pass with a mask, True for kept, in the shape of the codes."""
    form = layout.replace("D", "")
    length = sizes(layout, len(keep), 1)
    return lambda f, x: f(x, mask=keep.reshape([length[letter] for letter in form]))


def mask_parts(subject: Quantizer) -> tuple[str, ...]:
    """Kinds of masks; a part of the latents in each mode in which the rest can be compared."""
    if mask_layout(subject) is None:
        return ()
    modes = ("train", "eval") if train_repeats(subject) else ("eval",)
    return ("ones", *(f"part/{mode}" for mode in modes), "padding/train", *(f"nan/{mode}" for mode in modes))


@invariant(
    "interface.mask",
    kind="contract",
    mode="table",
    source="theory: masked latents are not there",
    parts=mask_parts,
    hardening=("nan*",),
    corners=("generic", "on-code", "unit"),
    state="both",
    mutants=("mask_ignored_in_loss", "padding_counted"),
    hint="leave masked latents out of loss, counts, sums, start and replacement; select with where, do not "
    "multiply by 0.",
    follows=(
        "interface.eval_pure",
        "interface.batch_independence",
    ),
)
def mask(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Masked latents are as if they were not there, and a mask of ones is no mask.

    Codes, values, loss, gradients and state are those of the kept latents alone, whatever the padding holds.

    Margin: the kept latents are often computed alike, with a margin near 0; the bound is for products cut into
    other blocks.
    """
    kind, _, mode = (case.part or "").partition("/")
    train, layout = mode != "eval", mask_layout(subject)
    assert layout is not None
    z, n = case.z, len(case.z)
    if kind == "ones":
        train = train_repeats(subject)
        want = subject.forward(z, train=train, seed=case.seed, layout=layout)
        prepare(subject, case)
        full = masked(torch.ones(n, dtype=torch.bool), layout)
        got = subject.forward(z, train=train, seed=case.seed, layout=layout, via=full)
        yield from agree(subject, case, want, got, train=train)
        return
    keep = torch.rand(n, generator=torch.Generator().manual_seed(case.seed + 5)) < 0.6
    keep[: subject.domain.min_n] = True
    padding = float("nan") if kind == "nan" else HUGE * max(1.0, float(z.abs().max()))
    padded = torch.where(keep[:, None], z, torch.full_like(z, padding))
    rows = keep.nonzero().flatten()
    largest = max([float(z.abs().max()), *(float(book.abs().max()) for book in subject.codebooks())])
    want = subject.forward(z[rows], train=train, seed=case.seed, layout=layout)
    moved, sent = learnt(subject), received(want, case.g[rows])
    prepare(subject, case)
    got = subject.forward(padded, train=train, seed=case.seed, layout=layout, via=masked(keep, layout))
    yield from finite_state(subject, "after a masked pass")
    reach = max((float(book.abs().max()) for book in subject.codebooks()), default=0.0)
    yield holds(
        not reach > 100 * max(1.0, largest),
        "padding in codebook",
        f"a code of size {reach:.3g} came out of the padding",
    )
    if kind == "padding":
        return
    part = select(got, rows)
    cotangents = torch.zeros_like(z).index_copy_(0, rows, case.g[rows])
    if train and still(subject) and (want.codes is None or part.codes is None or torch.equal(want.codes, part.codes)):
        yield from learnt_agree(subject, moved, learnt(subject), n, float(z[rows].abs().max()))
        if kind == "part":
            yield from _gradients(subject, case, want=sent, got=received(got, cotangents), rows=rows, out=want)
    yield from agree(subject, _kept(case, rows), want, part, train=train)


def _kept(case: Case, rows: Tensor) -> Case:
    return Case(case.z[rows], case.g[rows], case.seed, case.codebook, case.history, case.part)


def _gradients(
    subject: Quantizer, case: Case, *, want: Tensor, got: Tensor, rows: Tensor, out: Quantized
) -> Iterator[Clause]:
    """Kept latents receive what they receive alone, masked ones nothing."""
    dropped = torch.ones(len(got), dtype=torch.bool)
    dropped[rows] = False
    yield holds(not got[dropped].any(), "gradient of padding", "a masked latent receives a gradient")
    z, q = array(out.z.rows), array(out.z_q.rows)
    u = roundoff(subject)
    relative = rotation_law_bound(z, q, u) if trait(subject, "estimator") != "straight-through" else 0 * norms(z)
    size = norms(array(want)) + norms(array(case.g[rows])) * (1 + norms(q) / (norms(z) + 1e-30))
    keep = relative < SAFE
    error = norms(array(want) - array(got[rows]))
    bound = (STEPS * (len(got) + z.shape[1]) * u + relative) * size
    yield within(error[keep], bound[keep], "gradient", "gradient of a kept latent with a mask and alone")


def flags(subject: Quantizer) -> tuple[str, ...]:
    """Boolean parameters of the constructor, and optional arguments of a pass."""
    called = parameters(method(subject))
    return (
        *(name for name, value in subject.arguments.items() if isinstance(value, bool)),
        *(f"forward {name}" for name, value in called.items() if value.default is not value.empty),
    )


@invariant(
    "interface.arguments",
    kind="contract",
    mode="process",
    source=SOURCE,
    parts=flags,
    mutants=("flag_unbound",),
    hint="an option that is not supported, or not together with another, is refused in the constructor, with "
    "a message.",
)
def arguments(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Each boolean flag alone works or is refused with a message.

    An optional argument of a pass, given at its default, changes nothing.

    Margin: what a flag changes beside the results is compared with itself: 0.
    """
    name = case.part or ""
    if name.startswith("forward "):
        yield from _of_forward(subject, case, name.removeprefix("forward "))
        return
    value = not subject.arguments[name]
    try:
        twin = subject.build({name: value}, warm=False)
        for step, train in enumerate((True, True, False)):
            out = twin.forward(case.z, train=train, seed=case.seed + step)
            backward(out, case.g)
    except Exception as error:  # noqa: BLE001  (a constructor may raise anything)
        yield _refused(error, f"{name}={value}")
    else:
        yield holds(condition=True, label="slip", message="")
        yield from finite_state(twin, f"with {name}={value}")


def _refused(error: Exception, what: str) -> Clause:
    """A refusal says what it refuses; a slip of the pen does not."""
    cause = error.__cause__ or error
    return holds(not isinstance(cause, SLIPS), "slip", f"{what} raises {type(cause).__name__}: {cause}")


def _of_forward(subject: Quantizer, case: Case, name: str) -> Iterator[Clause]:
    default = parameters(method(subject))[name].default
    want = subject.forward(case.z, train=False, seed=case.seed, grad=False)
    prepare(subject, case)
    got = subject.forward(case.z, train=False, seed=case.seed, grad=False, via=lambda f, x: f(x, **{name: default}))
    yield from agree(subject, case, want, got, train=False)
    if isinstance(default, bool):
        for train in (True, False):
            try:
                subject.forward(case.z, train=train, seed=case.seed, via=lambda f, x: f(x, **{name: not default}))
            except Violation as violation:
                yield _refused(violation, f"{name}={not default} of a pass")
