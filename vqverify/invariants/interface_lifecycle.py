"""The life of a layer: a second instance, a copy, a save, a new codebook, two passes before one backward."""

from __future__ import annotations

import copy
import pickle
import sys
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.bounds import Clause, Violation, holds, within
from vqverify.invariant import invariant
from vqverify.invariants.agreement import STEPS, agree, learnt, learnt_agree, same
from vqverify.invariants.interface import backward
from vqverify.invariants.interface_purity import changed
from vqverify.invariants.measure import array, norms, roundoff, trait
from vqverify.quantizer import Quantized, Quantizer
from vqverify.subject.guards import guarded
from vqverify.subject.state import put_back, take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqverify.case import Case

CORNERS = ("generic", "on-code")
STATELESS = (nn.Identity, *(kind for kind in vars(nn.modules.activation).values() if isinstance(kind, type)))


@invariant(
    "interface.instances_independent",
    kind="contract",
    mode="table",
    source="Python: a default is evaluated once",
    corners=("generic",),
    mutants=("mutable_default", "state_on_class"),
    hint="a default argument or a class attribute that is a tensor, module, list or dict is shared by every instance.",
)
def instances_independent(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Two instances share no module, parameter or buffer, and training one changes no result of the other."""
    one, two = subject.build(), subject.build()
    given = {
        id(part) for value in subject.spec.kwargs.values() if isinstance(value, nn.Module) for part in _parts(value)
    }
    common = {id(part): name for name, part in _named(one.module)}
    shared = [name for name, part in _named(two.module) if id(part) in common and id(part) not in given]
    yield holds(not shared, "shared", f"two instances share {', '.join(shared[:4])}")
    before = two.forward(case.z, train=False, seed=case.seed, grad=False)
    two.restore()
    state = two.state()
    for step in range(2):
        backward(one.forward(case.z, train=True, seed=case.seed + step), case.g)
    names = changed(state, two.state())
    after = two.forward(case.z, train=False, seed=case.seed, grad=False)
    yield holds(not names, "state", f"training one instance changed {', '.join(names[:4])} of another")
    yield holds(same(before.z_q.tensor, after.z_q.tensor), "value", "training one instance changed z_q of another")


def _named(module: nn.Module) -> Iterator[tuple[str, object]]:
    children = ((name, child) for name, child in module.named_modules() if name and not isinstance(child, STATELESS))
    return chain(children, module.named_parameters(), module.named_buffers())


def _parts(module: nn.Module) -> Iterator[object]:
    return chain(module.modules(), module.parameters(), module.buffers())


@invariant(
    "interface.caches_coherent",
    kind="contract",
    mode="table",
    source="theory T27: permuting the codes permutes the indices",
    needs=("codebook", "settable", "codes"),
    parts=lambda _: ("write", "load", "cast"),
    corners=CORNERS,
    mutants=("caches_norms",),
    hint="norms or a normalised copy of the codebook that are kept from call to call: drop them when the "
    "codebook changes.",
    follows=(
        "lookup.decode",
        "interface.eval_pure",
    ),
)
def caches_coherent(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """After a pass, a codebook that was written, loaded or cast is the one that lookup and decode use."""
    if case.part == "cast":
        yield from _after_cast(subject, case)
        return
    want = subject.forward(case.z, train=False, seed=case.seed)
    assert want.codes is not None
    decoded = [subject.decode(want.codes, method) for method in subject.decoders]
    rolled = [book.roll(1, 0) for book in subject.codebooks()]
    if case.part == "write":
        subject.set_codebook(rolled)
    else:
        saved = subject.snapshot()
        subject.set_codebook(rolled)
        held = copy.deepcopy(subject.module.state_dict())
        subject.restore(saved)
        with guarded("load_state_dict"):
            subject.module.load_state_dict(held)
    got = subject.forward(case.z, train=False, seed=case.seed)
    assert got.codes is not None
    if trait(subject, "metric") is None:  # a predictor chooses: the codes stay, and their vectors move
        stale = torch.equal(got.codes, want.codes) and same(got.z_q.tensor, want.z_q.tensor)
        yield holds(not stale, "stale", "z_q and codes are as if the codebook had not been renumbered")
        return
    sizes = torch.tensor([len(book) for book in rolled][: want.codes.shape[1]])
    back = torch.where(got.codes >= 0, (got.codes - 1) % sizes, got.codes)
    again = [subject.decode((want.codes + 1) % sizes, method) for method in subject.decoders]
    for method, first, second in zip(subject.decoders, decoded, again, strict=True):
        size = norms(array(first)).max(initial=0.0)
        bound = STEPS * (2 * first.shape[-1] + 8) * roundoff(subject) * size
        yield within(
            norms(array(first) - array(second)),
            bound,
            "decode",
            f"{method} after the codebook was renumbered",
        )
    yield from agree(subject, case, want, _renumbered(got, back), train=False)


def _renumbered(out: Quantized, codes: Tensor) -> Quantized:
    return Quantized(out.z, out.z_q, codes, None, (), (), out.codebook, out.raw)


def _after_cast(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A layer that was used and then cast gives what one gives that was cast before its first use."""
    results: list[Quantized] = []
    for used in (False, True):
        twin = subject.build()
        with guarded("load_state_dict"):
            twin.module.load_state_dict(subject.module.state_dict())
        if used:
            twin.forward(case.z, train=False, seed=case.seed, grad=False)
        twin.module.double()
        try:
            results.append(twin.forward(case.z.double(), train=False, seed=case.seed, grad=False))
        except Violation:
            if used:
                raise
            yield holds(condition=True, label="cast", message="")  # the row of precision says so
            return
    first, second = (out.z_q.tensor for out in results)
    yield holds(same(first, second), "cast", "a pass before the cast to float64 changed z_q after it")


def copy_parts(subject: Quantizer) -> tuple[str, ...]:
    """deepcopy, and pickle where the class can be found by its name."""
    kind = type(subject.module)
    named = getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind
    return ("deepcopy", "pickle") if named else ("deepcopy",)


def _copied(subject: Quantizer, part: str | None) -> nn.Module:
    module = subject.module
    return copy.deepcopy(module) if part == "deepcopy" else pickle.loads(pickle.dumps(module))  # noqa: S301  (its own bytes)


@invariant(
    "interface.copies",
    kind="contract",
    mode="table",
    source="Python: copy and pickle",
    state="both",
    parts=copy_parts,
    hardening=("pickle",),
    corners=CORNERS,
    mutants=("closure_over_self", "keeps_loss"),
    hint="tensors with a graph cannot be copied, lambdas cannot be pickled, and a closure keeps pointing "
    "to the original.",
    follows=(
        "interface.graph_free",
        "interface.eval_pure",
    ),
)
def copies(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Copies by deepcopy and pickle, before and after a training step, are equal and independent."""
    for step in range(2):
        try:
            module = _copied(subject, case.part)
        except Exception as error:  # noqa: BLE001  (whatever the copy protocol of a stranger's layer raises)
            yield holds(condition=False, label="raised", message=f"{case.part} raised {type(error).__name__}: {error}")
            return
        twin, when = subject.over(module), "after a training step" if step else "as built"
        differ = changed(subject.state(), twin.state())
        yield holds(not differ, "state", f"the copy {when} differs in {', '.join(differ[:4])}")
        a, b = (layer.forward(case.z, train=False, seed=case.seed, grad=False) for layer in (subject, twin))
        yield holds(_close(subject, a, b), "value", f"the copy {when} gives another z_q")
        before = subject.state()
        backward(twin.forward(case.z, train=True, seed=case.seed), case.g)
        leaked = changed(before, subject.state())
        yield holds(not leaked, "shared", f"training the copy changed {', '.join(leaked[:4])} of the original")
        held = take(twin.module)
        value = twin.forward(case.z, train=False, seed=case.seed, grad=False)
        put_back(held)  # an eval pass may move the copy itself
        before = twin.state()
        for round_ in range(3):
            backward(subject.forward(case.z, train=True, seed=case.seed + round_), case.g)
        leaked = changed(before, twin.state())
        yield holds(not leaked, "shared", f"training the original changed {', '.join(leaked[:4])} of the copy")
        after = twin.forward(case.z, train=False, seed=case.seed, grad=False)
        yield holds(_close(subject, value, after), "shared value", "training the original changed z_q of the copy")


def _close(subject: Quantizer, a: Quantized, b: Quantized) -> bool:
    """The same operations on the same numbers: equal but for the order in which a product is summed."""
    first, second = array(a.z_q.rows), array(b.z_q.rows)
    size = norms(first).max(initial=0.0) + norms(array(a.z.rows)).max(initial=0.0)
    return bool((norms(first - second) <= STEPS * (2 * first.shape[-1] + 8) * roundoff(subject) * size).all())


@invariant(
    "interface.state_round_trip",
    kind="contract",
    mode="table",
    source="torch: saving and loading a state_dict",
    state="both",
    parts=lambda _: ("result", "training on"),
    corners=CORNERS,
    mutants=("projection_not_saved", "init_flag_lost"),
    hint="whatever a result depends on belongs in a buffer: flags, moments, step counts, frozen random projections.",
)
def state_round_trip(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A state_dict loaded into a fresh layer gives the same result, and so does training on from it.

    Margin: the same operations on the same numbers: the margin is 0; the bound is for products summed in
    another order.
    """
    if case.part == "result":
        backward(subject.forward(case.z, train=True, seed=case.seed), case.g)
    held = copy.deepcopy(subject.module.state_dict())
    twin = subject.build(seed=subject.spec.seed + 1, warm=False)
    with guarded("load_state_dict of a fresh layer"):
        twin.module.load_state_dict(held)
    train = case.part == "training on"
    want = subject.forward(case.z, train=train, seed=case.seed + 7)
    moved = learnt(subject)
    got = twin.forward(case.z, train=train, seed=case.seed + 7)
    if case.part == "result":
        yield holds(_close(subject, want, got), "value", "after loading, eval gives another z_q")
        return
    yield holds(_close(subject, want, got), "value", "after loading, a training pass gives another z_q")
    yield from learnt_agree(subject, moved, learnt(twin), len(case.z), float(case.z.abs().max()))
