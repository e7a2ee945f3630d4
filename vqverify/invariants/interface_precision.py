"""Other precisions, devices and execution modes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, Violation, holds, unit_roundoff, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import agree, distance_gap, learnt, learnt_agree
from vqverify.invariants.interface import SOURCE, finite_outputs, finite_state, received
from vqverify.invariants.interface_batching import still, train_repeats
from vqverify.invariants.interface_purity import changed
from vqverify.invariants.lookup import squared_distances
from vqverify.invariants.measure import View, norms, trait, views
from vqverify.subject import state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqverify.quantizer import Quantized, Quantizer

FINE, COARSE = 2.0**-34, 2.0**-12  # steps that float32 rounds away, and that it shows


def precision_parts(subject: Quantizer) -> tuple[str, ...]:
    """Formats to cast a float32 layer to."""
    if subject.domain.dtype != torch.float32:
        return ()
    return ("float64", "bfloat16", "float16", "state in bfloat16", "state in float16")


@invariant(
    "interface.precision",
    kind="contract",
    mode="table",
    source="theory T28, T29",
    parts=precision_parts,
    corners=("generic",),
    hardening=("state*",),
    mutants=("hidden_float", "returns_double"),
    hint="a .float() inside, or a constant made without dtype=, throws away half of the digits; cast the result back.",
)
def precision(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A float64 layer works in float64; in half precision codes are nearest up to it, or the layer raises.

    In bfloat16 and float16 z_q has that dtype; what training leaves behind is finite. Nothing is said where squared
    distances leave the range of the format.

    Margin: the bound is for a layer that rounds in each of its operations, and most round a few times.
    """
    name = (case.part or "float64").removeprefix("state in ")
    dtype: torch.dtype = getattr(torch, name)
    twin = subject.build()
    twin.module.to(dtype)
    twin.domain = replace(twin.domain, dtype=dtype)
    z = case.z.to(dtype)
    if dtype == torch.float64:
        out = twin.forward(z, train=True, seed=case.seed)
        yield holds(out.z_q.tensor.dtype == dtype, "dtype", f"z_q of a float64 layer is {out.z_q.tensor.dtype}")
        yield holds(
            not _hides(twin, z, case),
            "hidden",
            "z_q of a float64 layer does not follow a relative step of 2⁻³⁴ of its codes",
        )
        return
    longest = max(float(rows.double().norm(dim=1).max()) for rows in (case.z, *twin.codebooks()))
    if 4 * longest**2 > torch.finfo(dtype).max:
        return  # squared distances are out of range for any layer of this format
    for train in (False, True):
        try:
            out = twin.forward(z, train=train, seed=case.seed, trace=True)
        except Violation:
            yield holds(condition=True, label="refused", message="")
            return
        if case.part != name:
            yield holds(condition=True, label="finite state", message="")
            yield from finite_state(twin, f"after a pass in {name}")
            continue
        yield holds(out.z_q.tensor.dtype == dtype, "dtype", f"z_q of a {name} layer is {out.z_q.tensor.dtype}")
        yield from finite_outputs(out)
        for view in _located(subject, out):
            yield _nearest(subject, view, unit_roundoff(dtype))


def _located(subject: Quantizer, out: Quantized) -> list[View]:
    """The levels of a pass, if all were located: a level for each column of codes."""
    found = list(views(out))
    whole = out.codes is not None and len(found) == out.codes.shape[1]
    return found if whole and trait(subject, "deterministic") else []


def _nearest(subject: Quantizer, view: View, u: float) -> Clause:
    """The chosen code is nearest up to a unit roundoff u."""
    keep = view.k >= 0
    z, k, book = view.z[keep], view.k[keep], view.codebook
    if not len(k) or k.max() >= len(book):
        return holds(not len(k), "range", f"codes up to {k.max(initial=0)} for a codebook of {len(book)}")
    metric = trait(subject, "metric")
    if metric == "euclidean":
        best = squared_distances(z, book).argmin(1)
    elif metric in {"cosine", "dot"}:
        sizes = np.maximum(norms(book), 1e-30) if metric == "cosine" else np.ones(len(book))
        best = (z @ (book / sizes[:, None]).T).argmax(1)
    else:
        return holds(condition=True, label="nearest", message="")
    gap, bound = distance_gap(metric, z, book[best], book[k], u)
    return within(gap, bound, "nearest", f"what the nearest code of level {view.index} is nearer by")


def _hides(twin: Quantizer, z: Tensor, case: Case) -> bool:
    """Whether results follow a coarse step of the state, or of the latents, and not at all a fine one."""
    for of_state in (True, False):
        base, fine, coarse = (_response(twin, z, case, step, of_state=of_state) for step in (0.0, FINE, COARSE))
        follows = ((coarse - base).abs() > 0.05 * COARSE * base.abs()).double().mean()
        if float(follows) > 0.2:
            # a step of 2⁻³⁴ takes one number in 2⁹ across a boundary of float32; in float64 all follow
            return float(((fine - base).abs() > 0.05 * FINE * base.abs()).double().mean()) < 0.2
    return False


def _response(twin: Quantizer, z: Tensor, case: Case, step: float, *, of_state: bool) -> Tensor:
    """What follows a relative step: z_q that of the state, in eval, or the gradient that of the latents."""
    saved = twin.snapshot()
    signs = torch.Generator().manual_seed(3)

    def stepped(tensor: Tensor) -> Tensor:
        return tensor * (1 + step * (torch.randint(0, 2, tensor.shape, generator=signs) * 2 - 1).to(tensor))

    try:
        if of_state:
            for tensor in state.all_tensors(twin.module).values():
                if tensor.is_floating_point():
                    tensor.data.copy_(stepped(tensor.data))
            return twin.forward(z, train=False, seed=case.seed, grad=False).z_q.rows.double()
        return received(twin.forward(stepped(z), train=True, seed=case.seed), case.g.to(z)).double()
    finally:
        twin.restore(saved)


@invariant(
    "interface.autocast",
    kind="contract",
    mode="table",
    follows=("lookup.nearest",),
    source="torch.amp: products in bfloat16, state in float32",
    corners=("generic", "on-code"),
    mutants=("state_in_half_under_autocast",),
    hint="leave autocast for lookup and update: with torch.autocast(device, enabled=False), and latents.float().",
)
def autocast(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Under autocast codes are nearest within bfloat16's bound, and what a layer keeps loses no precision.

    Margin: most layers search in float32 all the same, far within bfloat16's bound: the margin is small.
    """
    if subject.domain.dtype != torch.float32:
        return
    plain = subject.forward(case.z, train=True, seed=case.seed)
    before = subject.accumulators()
    prepare(subject, case)
    kinds = {name: tensor.dtype for name, tensor in subject.state().items()}

    def lowered(call: object, x: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return call(x)  # type: ignore[operator]

    out = subject.forward(case.z, train=True, seed=case.seed, trace=True, via=lowered)
    yield from finite_outputs(out)
    after = subject.state()
    cast = [name for name, kind in kinds.items() if name in after and after[name].dtype != kind]
    yield holds(not cast, "dtype", f"a pass under autocast changed the dtype of {', '.join(cast[:4])}")
    for view in _located(subject, out):
        yield _nearest(subject, view, unit_roundoff(torch.bfloat16))
    if still(subject) and plain.codes is not None and out.codes is not None:
        codes = torch.cat([plain.codes, out.codes])
        for level, (first, second) in enumerate(zip(before, subject.accumulators(), strict=True)):
            unused = torch.ones(len(first.counts), dtype=torch.bool)
            unused[codes[:, min(level, codes.shape[1] - 1)].clamp_min(0)] = False
            lost = _coarse(second.sums[unused]) and not _coarse(first.sums[unused])
            yield holds(
                not lost,
                "state",
                f"the sums of unused codes at level {level} have no more digits than bfloat16",
            )


def _coarse(tensor: Tensor) -> bool:
    return bool(tensor.any()) and torch.equal(tensor, tensor.bfloat16().to(tensor))


META = "meta"  # torch's device of shapes without values: what is left behind is left behind there, too
ELSEWHERE = ("same device", "expected device")  # of torch's messages about tensors in two places


def devices(subject: Quantizer) -> tuple[str, ...]:
    """Second devices of this machine; the meta device where a pass needs no value of a tensor."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    z = torch.zeros(max(2, subject.domain.min_n), subject.domain.dim, dtype=subject.domain.dtype)
    return (*found, META) if _on_meta(subject, z, train=False) is not None else tuple(found)


def _moved(subject: Quantizer, device: str) -> Quantizer:
    """A copy of the layer on another device; its passes take latents from here and move them."""
    twin = subject.over(copy.deepcopy(subject.module).to(device))
    twin.spec = replace(twin.spec, device=device)
    return twin


def _on_meta(subject: Quantizer, z: Tensor, *, train: bool) -> Clause | None:
    """A pass of shapes alone; None where it asks for values, which are not there."""
    try:
        twin = _moved(subject, META)
    except (RuntimeError, TypeError):  # a module that cannot be copied or moved
        return None
    try:
        twin.forward(z, train=train, grad=False)
    except Violation as violation:
        left = any(said in violation.message for said in ELSEWHERE)
        return holds(condition=False, label="left behind", message=violation.message) if left else None
    except NotImplementedError:
        pass  # the pass went through; what it returned has no values to bring back here
    return holds(condition=True, label="left behind", message="")


@invariant(
    "interface.device_moves",
    kind="contract",
    mode="table",
    source=SOURCE,
    parts=devices,
    corners=("generic",),
    mutants=("powers_left_behind", "table_left_behind"),
    hint="a tensor that is a plain attribute does not move with the module: register it as a buffer.",
)
def device_moves(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A layer works on another device, and moving it there and back changes nothing.

    On the meta device, which has shapes and no values, a pass only has to find all of the layer's tensors there.
    """
    device = case.part or "cpu"
    if device == META:
        for train in (False, True):
            clause = _on_meta(subject, case.z, train=train)
            if clause is not None:
                yield clause
        return
    want = subject.forward(case.z, train=False, seed=case.seed)
    twin = _moved(subject, device)
    got = twin.forward(case.z, train=False, seed=case.seed)
    yield holds(
        got.z_q.tensor.device.type == device,
        "device",
        f"z_q is on {got.z_q.tensor.device} for latents on {device}",
    )
    twin.forward(case.z, train=True, seed=case.seed)
    back = subject.over(copy.deepcopy(subject.module).to(device).to("cpu"))
    lost = changed(subject.state(), back.state())
    yield holds(not lost, "state", f"moving to {device} and back changed {', '.join(lost[:4])}")
    again = back.forward(case.z, train=False, seed=case.seed)
    yield from agree(subject, case, want, again, train=False)
    here = replace(
        got, z=replace(got.z, tensor=got.z.tensor.cpu()), codes=None if got.codes is None else got.codes.cpu()
    )
    yield from agree(subject, case, want, replace(here, loss=None, losses=()), train=False)


@invariant(
    "interface.compiled",
    kind="hardening",
    mode="process",
    source="torch.compile",
    profiles=("merge", "nightly"),
    mutants=("compiles_without_update",),
    hint="an update behind torch.compiler.is_compiling, or one that the compiler cannot see (.data, "
    "numpy), is dropped.",
)
def compiled(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """torch.compile gives the results and the state of eager execution, and it did compile something."""
    from torch._dynamo import config, reset, utils

    reset()
    utils.counters.clear()
    run = torch.compile(lambda call, x: call(x), backend="aot_eager")
    passes = [(True, case.z), (False, case.z)] if train_repeats(subject) else [(False, case.z)]
    try:
        with config.patch(fail_on_recompile_limit_hit=True):
            for train, z in passes:
                prepare(subject, case)
                want = subject.forward(z, train=train, seed=case.seed)
                moved = learnt(subject)
                prepare(subject, case)
                got = subject.forward(z, train=train, seed=case.seed, via=run)
                if train and still(subject):
                    yield from learnt_agree(subject, moved, learnt(subject), len(z), float(z.abs().max()))
                yield from agree(subject, case, want, got, train=train)
        graphs = utils.counters["stats"]["unique_graphs"]
        yield holds(graphs > 0, "not compiled", "torch.compile captured no graph: everything ran as before")
    finally:
        reset()
