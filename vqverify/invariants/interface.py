"""Being a good layer: it runs, its outputs make sense, and it leaves the generators of others alone."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, holds
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.measure import trait
from vqverify.subject.guards import guarded
from vqverify.subject.plan import TOKENS
from vqverify.subject.randomness import forked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqverify.quantizer import Quantized, Quantizer

MODES = ("train", "eval")
CORNERS = ("single", "on-code", "zero", "unit", "far")
SOURCE = "what every torch.nn.Module owes its caller"


def modes(_: Quantizer) -> tuple[str, ...]:
    """Cases of a row that is checked in train and in eval."""
    return MODES


def runs_parts(subject: Quantizer) -> tuple[str, ...]:
    """Ways to call a layer: modes, gradients, more batch entries, other layouts."""
    batches = ("batches",) if "B" in subject.domain.layouts[0] else ()
    return ("train", "eval", "no_grad", "frozen", *batches, *subject.domain.layouts[1:])


@invariant(
    "interface.runs",
    kind="contract",
    mode="table",
    source=SOURCE,
    parts=runs_parts,
    corners=(*CORNERS, "generic", "tie", "duplicates", "off-centre", "antiparallel"),
    follows=("interface.graph_free",),
    mutants=("name_bound_in_train_only", "needs_gradient", "moments_start_nan"),
    hint="a name that is bound on one branch only, memory left uninitialised, autograd asked of tensors that "
    "need none.",
)
def runs(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Forward, backward and a third step complete, and outputs and state are finite.

    In train and eval, with and without gradients, with latents that need none, for every accepted layout.
    """
    if not _moderate(subject, case):
        return
    yield from finite_state(subject, "before the pass")
    train = case.part != "eval"
    for step in range(3 if case.part == "train" else 1):
        for out in _calls(subject, case, train=train, seed=case.seed + step):
            yield from finite_outputs(out)
    yield from finite_state(subject, "after the pass")
    if case.part == "train":  # the change of mode, both ways
        subject.forward(case.z, train=False, seed=case.seed)
        subject.forward(case.z, train=True, seed=case.seed)


def _moderate(subject: Quantizer, case: Case) -> bool:
    """Whether squared distances of such latents fit the layer's format."""
    largest = max(float(z.abs().max()) for z in (case.z, *case.history) if z.numel())
    return 8 * subject.domain.dim * largest**2 < torch.finfo(subject.domain.dtype).max


def _calls(subject: Quantizer, case: Case, *, train: bool, seed: int) -> Iterator[Quantized]:
    """The pass of this case, with its backward."""
    z = case.z
    match case.part:
        case "no_grad":
            yield subject.forward(z, train=True, seed=seed, grad=False)
            yield subject.forward(z, train=False, seed=seed, grad=False)
            return
        case "frozen":
            out = subject.forward(z, train=True, seed=seed, via=lambda f, x: f(x.detach()))
        case "batches":
            out = subject.forward(z, train=True, seed=seed, groups=len(z))
        case "train" | "eval":
            out = subject.forward(z, train=train, seed=seed)
        case layout:
            out = subject.forward(z, train=True, seed=seed, layout=layout)
    backward(out, case.g)
    yield out


def backward(out: Quantized, g: Tensor) -> None:
    """What a training step does after the pass: a task loss with gradient g at z_q, and the own loss."""
    total = (out.z_q.rows * g.to(out.z_q.rows)).sum()
    if out.loss is not None:
        total = total + out.loss
    if total.requires_grad:
        with guarded("backward"):
            total.backward()


def received(out: Quantized, g: Tensor) -> Tensor:
    """Gradient that the latents get from a task gradient g at z_q and the layer's own loss."""
    total = (out.z_q.rows * g.to(out.z_q.rows)).sum()
    if out.loss is not None:
        total = total + out.loss
    if not total.requires_grad:
        return torch.zeros_like(out.z.tensor)
    with guarded("backward"):
        found = torch.autograd.grad(total, out.z.tensor, retain_graph=True, allow_unused=True)
    (gradient,) = cast("tuple[Tensor | None]", found)
    return torch.zeros_like(out.z.tensor) if gradient is None else gradient


def finite_outputs(out: Quantized) -> Iterator[Clause]:
    """z_q and loss hold numbers."""
    yield holds(out.z_q.tensor.isfinite().all(), "finite output", "z_q holds NaN or infinity")
    if out.loss is not None:
        yield holds(out.loss.isfinite().all(), "finite loss", f"the loss is {float(out.loss.detach())}")


def finite_state(subject: Quantizer, when: str) -> Iterator[Clause]:
    """So does everything in the state_dict."""
    for name, tensor in subject.module.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            yield holds(tensor.isfinite().all(), "finite state", f"{name} holds NaN or infinity {when}")


@invariant(
    "interface.shapes",
    kind="contract",
    source=SOURCE,
    state="both",
    parts=modes,
    corners=("single", "on-code", "unit"),
    mutants=("codes_off_by_one", "codes_in_float", "returns_double", "image_transposed"),
    hint="the permutation back is the inverse of the one before; indices start at 0 and are integers (float16 holds few "
    "above 2048); z_q has the dtype of z, not of the codebook; a loss is reduced before it is returned.",
)
def shapes(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """z_q has z's shape, dtype and device, keeps each latent's place, and the loss is a scalar.

    Codes are integers (or one-hot rows) in [0, K), −1 for dropped, one a latent and level.
    """
    z = case.z
    out = subject.forward(z, train=case.part == "train", seed=case.seed)
    value = out.z_q.tensor
    yield holds(
        out.z_q.rows.shape == z.shape,
        "shape",
        f"z_q reads as {tuple(out.z_q.rows.shape)} for latents {tuple(z.shape)}",
    )
    yield from in_place(out)
    yield holds(value.dtype == z.dtype, "dtype", f"z_q is {value.dtype} for latents of {z.dtype}")
    yield holds(value.device == z.device, "device", f"z_q is on {value.device} for latents on {z.device}")
    if out.codes is not None:
        yield holds(len(out.codes) == len(z), "count", f"{len(out.codes)} codes for {len(z)} latents")
        inexact = [dtype for dtype in out.codes_as if dtype.is_floating_point]
        yield holds(not inexact, "codes", f"codes are {', '.join(map(str, inexact))}, which cannot index a table")
        sizes: list[int | None] = [len(book) for book in subject.codebooks()]
        sizes = sizes or [trait(subject, "codebook_size")]
        for level in range(out.codes.shape[1]):
            size = sizes[level] if level < len(sizes) else sizes[0]
            codes = out.codes[:, level]
            if size is not None and codes.numel():
                low, high = int(codes.min()), int(codes.max())
                yield holds(
                    low >= -1 and high < size,
                    "range",
                    f"codes {low}..{high} of level {level} for {size} codes",
                )
    levels = 1 if out.codes is None else out.codes.shape[1]
    for loss in out.losses:
        yield holds(
            loss.numel() in {1, levels},
            "loss",
            f"a loss of shape {tuple(loss.shape)} is no scalar, nor one a level",
        )


def in_place(out: Quantized) -> Iterator[Clause]:
    """The axes of latents come back in the order in which they went in; D may stand elsewhere, and they may be merged."""
    went, came = ("".join(letter for letter in form if letter in TOKENS) for form in out.forms)
    if "N" in came:
        went = re.sub("T?H?W", "N", went)
    yield holds(
        sorted(came) != sorted(went) or came == went,
        "order",
        f"latents in {out.forms[0]} come back in {out.forms[1]}: {came} for {went}",
    )


@invariant(
    "interface.generators",
    kind="contract",
    mode="table",
    source="torch notes on reproducibility",
    state="fresh",
    parts=modes,
    corners=("single", "generic", "far"),
    mutants=("reseeds_in_forward", "reseeds_numpy"),
    hint="draw from the global stream or from an own torch.Generator; never call manual_seed, np.random.seed "
    "or random.seed.",
)
def generators(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A pass never reseeds the global generators.

    Two seeds leave different streams behind, and one seed leaves the same stream twice.
    """
    train = case.part == "train"
    after = [_streams(subject, case, seed, train=train) for seed in (case.seed + 1, case.seed + 2, case.seed + 1)]
    for name in after[0]:
        first, other, again = (streams[name] for streams in after)
        yield holds(
            first != other,
            "reseeded",
            f"{name}: after the pass the stream is the same for two different seeds",
        )
        yield holds(
            first == again,
            "unseeded",
            f"{name}: the same seed leaves different streams: it was reseeded from outside",
        )


def _streams(subject: Quantizer, case: Case, seed: int, *, train: bool) -> dict[str, int]:
    """Fingerprints of the global generators after a pass that nobody forked."""
    prepare(subject, case)
    with forked(seed):
        subject.raw(case.z, train=train)
        _, keys, position, *_ = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002  (the global stream)
        return {
            "torch": hash(torch.default_generator.get_state().numpy().tobytes()),
            "numpy": hash((keys.tobytes(), position)),
            "random": hash(random.getstate()),
        }
