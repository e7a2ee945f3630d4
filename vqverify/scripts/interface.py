"""What a pass leaves alone: state, input, generators, results; and the formats it works in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vqverify.scripts.registry import script
from vqverify.scripts.say import compare
from vqverify.scripts.scene import Scene, Unscripted

HELD = "dict(layer.named_parameters()) | dict(layer.named_buffers())"


@script("interface.runs")
def runs(s: Scene) -> Iterator[str]:
    """A pass that raises, or gives what is no number."""
    train = s.part != "eval"
    layout = s.part if s.part in s.subject.domain.layouts else None
    groups = s.n if s.part == "batches" else 1
    if "before the pass" in s.witness.message:
        yield from _finite_state("as built")
        return
    if s.part not in {"no_grad", "frozen"}:
        yield "z.requires_grad_()"
    if s.part == "no_grad":
        yield "torch.set_grad_enabled(False)"
    yield f"out = {s.made(s.x(groups=groups, layout=layout), train=train)}"
    if s.label == "finite state":
        yield from _finite_state("after a pass")
        return
    if s.label.startswith("finite"):
        value = (s.z_q if s.label == "finite output" else s.loss)(train=train, layout=layout)
        yield f"value = {value}.detach()"
        yield f'print("{s.label.removeprefix("finite ")}", value, "and must be finite")'
        yield "assert value.isfinite().all()"
        return
    if layout is None and groups == 1 and s.part != "no_grad":
        yield f"total = {s.total(train=train)}"
        yield "if total.requires_grad: total.backward()"
    yield from s.run(train=not train)
    yield 'print("a pass, its backward and a pass in the other mode ran")'


def _finite_state(when: str) -> Iterator[str]:
    yield "bad = {name: t for name, t in layer.state_dict().items() if t.is_floating_point() and not t.isfinite().all()}"
    yield f'print("{when} the state holds", bad, "and must be finite")'
    yield "assert not bad"


@script("interface.eval_pure")
def eval_pure(s: Scene) -> Iterator[str]:
    """What an eval pass changed."""
    yield f"held = {HELD}"
    yield "before = {name: t.detach().clone() for name, t in held.items()}"
    yield from s.run(train=False)
    yield "changed = [name for name, t in held.items() if not torch.equal(t.nan_to_num(), before[name].nan_to_num())]"
    yield 'for name in changed[:1]: print(name, "is", held[name], "after an eval pass and was", before[name])'
    yield 'print("an eval pass changed", changed, "and must change", [])'
    yield "assert not changed"


@script("interface.eval_deterministic")
def eval_deterministic(s: Scene) -> Iterator[str]:
    """Two eval passes."""
    if s.label == "raised":
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    read = {
        "value": s.z_q(train=False, out="{}"), "codes": s.codes(train=False, out="{}") if s.call(train=False).codes else "",
        "loss": s.loss(train=False, out="{}") if s.call(train=False).losses else "",
    }[s.label]  # fmt: skip
    for seed, out in ((0, "first"), (1, "second")):
        yield f"torch.manual_seed({seed})"
        yield f"{out} = {s.made(s.x(), train=False)}"
    yield f"first, second = {read.format('first')}.detach(), {read.format('second')}.detach()"
    yield f'print("two eval calls give the {s.label}", second, "and", first)'
    yield "assert torch.equal(first, second)"


@script("interface.generators")
def generators(s: Scene) -> Iterator[str]:
    """What is drawn after a pass."""
    if s.label not in {"reseeded", "unseeded"}:
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    name = s.witness.message.partition(":")[0]
    seeding, draw = {
        "torch": ("torch.manual_seed(seed)", "torch.rand(1).item()"),
        "numpy": ("np.random.seed(seed)", "np.random.rand()"),
        "random": ("random.seed(seed)", "random.random()"),
    }[name]
    seeds = (1, 2) if s.label == "reseeded" else (1, 1)
    yield "drawn = []"
    yield f"for seed in {seeds}:"
    yield f"    {seeding}"
    yield f"    {s.made(s.x(), train=s.train)}"
    yield f"    drawn.append({draw})"
    apart = s.label == "reseeded"
    said = f"numbers drawn after a pass with the seeds {seeds[0]} and {seeds[1]} are"
    yield f'print("{said}", drawn, "and must be", "{"different" if apart else "equal"}")'
    yield f"assert drawn[0] {'!=' if apart else '=='} drawn[1]"


@script("interface.input_unchanged")
def input_unchanged(s: Scene) -> Iterator[str]:
    """The latents after a pass and before."""
    yield f"x = {s.x('z.requires_grad_()')} * 1"
    yield "before = x.detach().clone()"
    yield f"out = {s.made('x', train=s.train)}"
    yield from compare("x.detach()", "before", "after the pass the latents are", must="and were", tol=0)


@script("interface.no_alias", variants=2)
def no_alias(s: Scene) -> Iterator[str]:
    """What changes when the caller writes into what was returned."""
    train = s.label == "state" and not s.variant
    call = s.call(train=train)
    paths = {"z_q": [call.z_q.path], "codes": [c.path for c in call.codes], "loss": [c.path for c in call.losses]}[
        s.part
    ]
    if s.label == "earlier":
        yield "torch.set_grad_enabled(False)"
        yield f"out = {s.made(s.x(), train=False)}"
        yield f"before = {s.z_q(train=False)}.clone()"
        yield f"again = {s.made(s.x('(z + 1)'), train=False)}"
        yield from compare(
            s.z_q(train=False), "before", "after a later pass the z_q returned first holds", must="and held", tol=0
        )
        return
    if s.label not in {"state", "value"} or not paths:
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    yield "torch.set_grad_enabled(False)"
    yield f"out = {s.made(s.x(), train=train)}"
    yield f"before, held = {s.z_q(train=train)}.clone(), {{name: t.clone() for name, t in layer.state_dict().items()}}"
    yield f"{s.at(paths[0], train=train)}.fill_(7)  # the caller writes into what was returned"
    if s.label == "value":
        yield f"again = {s.made(s.x(), train=False)}"
        yield from compare(s.z_q(train=False, out="again"), "before", "the next z_q holds", must="and held", tol=0)
        return
    yield "changed = {name: t for name, t in layer.state_dict().items() if not torch.equal(t, held[name])}"
    yield 'print("which changed of the state", changed, "and must change", {})'
    yield "assert not changed"


@script("interface.graph_free")
def graph_free(s: Scene) -> Iterator[str]:
    """What carries a graph after a step."""
    yield f"out = {s.made(s.x('(z.requires_grad_() * 1)'), train=True)}"
    yield f"({s.total(train=True)}).backward()"
    yield "held = {name: t for m in layer.modules() for name, t in (vars(m) | m._buffers).items() if torch.is_tensor(t)}"
    yield "graphs = {name: t.grad_fn for name, t in held.items() if t.grad_fn is not None}"
    yield 'print("after a step these carry a graph:", graphs, "and none must")'
    yield "assert not graphs"


@script("interface.empty_and_single")
def empty_and_single(s: Scene) -> Iterator[str]:
    """What a layer gives for one latent, or none."""
    n = 1 if s.part.startswith("single") else 0
    yield "z.requires_grad_()"
    yield f"x = {s.x(f'z[:{n}]', n=n)}"
    yield f"out = {s.made('x', train=s.train)}"
    if s.label == "finite state":
        yield from _finite_state("after the pass")
    elif s.label == "finite loss":
        yield f"wrong = {s.loss(train=s.train)}"
        yield f'print("for {n} latents the loss is", wrong.item(), "and must be finite")'
        yield "assert wrong.isfinite()"
    elif s.call(train=s.train).z_q.form == s.subject.plan.calls[0].layout:
        yield f"wrong = {s.at(s.call(train=s.train).z_q.path, train=s.train)}"
        yield f'print("for {n} latents z_q is", wrong, "of shape", wrong.shape, "and must be finite, of shape", x.shape)'
        yield "assert wrong.shape == x.shape and wrong.isfinite().all()"
    else:
        raise Unscripted("z_q has another layout than the latents")


@script("interface.nonfinite_contained")
def nonfinite_contained(s: Scene) -> Iterator[str]:
    """What a latent that is no number does to the state."""
    if s.label != "poisoned":
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    yield f'z[0, 0] = float("{s.part.partition("/")[0]}")'
    yield from s.run(train=s.train)
    yield from _finite_state("after the pass")


@script("interface.rejects_bad_input")
def rejects_bad_input(s: Scene) -> Iterator[str]:
    """What a layer gives for latents of a wrong width, or for integers."""
    if s.label == "integer":
        yield "z = z.clamp(-100, 100).round().long()"
        yield from s.run(train=False)
        yield f"z_q = {s.z_q(train=False)}"
        yield 'print("z_q of integer latents is", z_q.dtype, "and must be of a floating dtype, or the layer refuses them")'
        yield "assert z_q.is_floating_point()"
        return
    said = re.search(r"width (\d+)", s.witness.message)
    if s.label != "dim" or said is None:
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    width = int(said[1])
    yield f"z = torch.zeros({s.n}, {width})"
    yield f"try: print({s.made(s.x(dim=width), train=False)})"
    yield 'except Exception as error: print("refused:", error)'
    yield f'else: raise AssertionError("latents of width {width} pass in silence, the width must be {s.dim}")'


@script("interface.arguments", stated=False)
def arguments(s: Scene) -> Iterator[str]:
    """What a layer raises with a flag."""
    if s.label != "slip" or s.part.startswith("forward "):
        raise Unscripted("no script is written for an argument of a pass")
    yield "z.requires_grad_()"
    yield f"layer = {s.constructor({s.part: repr(not s.subject.arguments[s.part])})}"
    yield from s.run(train=True)
    yield f"total = {s.total(train=True)}"
    yield "if total.requires_grad: total.backward()"
    yield from s.run(train=False)
    yield 'print("a pass, its backward and a pass in eval ran")'


@script("interface.instances_independent", stated=False)
def instances_independent(s: Scene) -> Iterator[str]:
    """What two instances share."""
    yield f"other = {s.constructor()}"
    if s.label == "shared":
        yield "parts = [{id(p): name for name, p in [*m.named_modules(), *m.named_parameters(), *m.named_buffers()]}"
        yield "         for m in (layer, other)]"
        yield "shared = [parts[0][key] for key in parts[0].keys() & parts[1].keys()]"
        yield 'print("two instances share", shared, "and must share", [])'
        yield "assert not shared"
        return
    if s.label == "state":
        yield "before = {name: t.detach().clone() for name, t in other.state_dict().items()}"
        yield from s.run(train=True)
        yield "changed = [name for name, t in other.state_dict().items() if not torch.equal(t, before[name])]"
        yield 'print("training one instance changed", changed, "of another, and must change", [])'
        yield "assert not changed"
        return
    yield f"before = {s.made(s.x(), train=False, layer='other')}"
    yield from s.run(train=True)
    yield f"after = {s.made(s.x(), train=False, layer='other')}"
    wrong, right = (f"{s.z_q(train=False, out=out)}.detach()" for out in ("after", "before"))
    yield from compare(wrong, right, "after training one instance z_q of another holds", must="and held", tol=0)


@script("interface.shapes")
def shapes(s: Scene) -> Iterator[str]:
    """Dtypes, ranges and shapes."""
    yield from s.run(train=s.train)
    match s.label:
        case "dtype":
            yield f"z_q = {s.z_q(train=s.train)}"
            yield 'print("z_q is", z_q.dtype, "and the latents are", z.dtype)'
            yield "assert z_q.dtype == z.dtype"
        case "codes":
            yield f"k = {s.codes(train=s.train)}"
            yield 'print("codes are", k.dtype, "and must be integers")'
            yield "assert not k.is_floating_point()"
        case "range":
            sizes = [len(book) for book in s.subject.codebooks()]
            size = sizes[0] if sizes else s.trait("codebook_size")
            yield f"k = {s.codes(train=s.train)}"
            yield f'print("codes lie in", [k.min().item(), k.max().item()], "and must lie in", {[0, size - 1]})'
            yield f"assert -1 <= k.min() and k.max() < {size}"
        case "loss":
            place = s.at(s.call(train=s.train).losses[0].path, train=s.train)
            yield f'print("the loss has the shape", tuple({place}.shape), "and must be a scalar")'
            yield f"assert {place}.numel() == 1"
        case other:
            raise Unscripted(f"no script is written for the label {other} of this row")


@script("interface.precision", stated=False)
def precision(s: Scene) -> Iterator[str]:
    """What a layer does in another precision."""
    name = s.part.removeprefix("state in ")
    yield f"layer.to(torch.{name})"
    if s.label == "dtype":
        yield from s.run(train=True, z=f"z.to(torch.{name})")
        yield f"z_q = {s.z_q(train=True)}"
        yield f'print("z_q of a layer in {name} is", z_q.dtype)'
        yield f"assert z_q.dtype == torch.{name}"
        return
    if s.label == "finite state":
        yield from s.run(train=True, z=f"z.to(torch.{name})")
        yield from _finite_state(f"after a pass in {name}")
        return
    if s.label == "raised":
        yield from s.run(train=True, z=f"z.to(torch.{name})")
        yield from s.run(train=False, z=f"z.to(torch.{name})")
        yield f'print("passes in {name} ran")'
        return
    if s.label != "hidden":
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    passed = s.z_q(train=False, out=s.made(s.x("z.double()"), train=False))
    yield f"before = {passed}.detach().clone()"
    yield "for t in layer.state_dict().values():"
    yield "    if t.is_floating_point(): t.mul_(1 + 2.0**-34)  # a step that float32 rounds away"
    yield f"moved = (({passed}.detach() - before) / before).abs().max().item()"
    yield 'print("z_q of a float64 layer moves relatively by", moved, "and its codes moved by", 2.0**-34)'
    yield "assert moved >= 2.0**-36"
