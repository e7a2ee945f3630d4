"""Two passes that must agree: in another mode, order, company, grouping or layout, with a mask, after a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from vqverify.invariants.interface_arguments import HUGE, mask_layout
from vqverify.scripts.registry import script
from vqverify.scripts.say import compare, equal
from vqverify.scripts.scene import Scene, Unscripted
from vqverify.subject.plan import sizes

TWIN = "twin = copy.deepcopy(layer)"
Read = Callable[..., str]


def agree(
    s: Scene,
    *,
    train: bool | tuple[bool, bool],
    got: str = "got",
    want: str = "want",
    rows: str = "",
    said: str = "z_q",
) -> Iterator[str]:
    """The part of two passes that the label names, the second pass beside the rows of the first."""
    first, second = train if isinstance(train, tuple) else (train, train)
    size = "(right.norm() + z.norm())"
    match s.label:
        case "raised":
            yield f"print({got})"
        case "value" | "nonfinite":
            yield from compare(
                f"{s.z_q(train=second, out=got)}.detach()", f"{s.z_q(train=first, out=want)}.detach(){rows}",
                f"z_q {said} holds", size=size,
            )  # fmt: skip
        case "codes":
            yield from equal(s.codes(train=second, out=got), s.codes(train=first, out=want) + rows, f"codes {said}")
        case "loss":
            yield from compare(
                f"({s.loss(train=second, out=got)}).detach()", f"({s.loss(train=first, out=want)}).detach()",
                f"the loss {said}",
            )  # fmt: skip
        case "state":
            yield from compare(
                f"{s.book()}.detach()",
                f"{s.book(layer='twin')}.detach()",
                f"after the pass {said} a code holds",
                tol=1e-3,
            )
        case other:
            raise Unscripted(f"no script is written for the label {other} of this row")


@script("interface.train_eval_agree")
def train_eval_agree(s: Scene) -> Iterator[str]:
    """A pass in train and one in eval."""
    yield TWIN
    yield from s.run(train=True, layer="twin", out="want")
    yield from s.run(train=False, out="got")
    yield from agree(s, train=(True, False), said="in eval and in train")


@script("interface.no_grad_same")
def no_grad_same(s: Scene) -> Iterator[str]:
    """A pass without gradients and one with them."""
    train = s.part == "train"
    yield TWIN
    yield from s.run(train=train, layer="twin", out="want", z="z.requires_grad_()")
    yield f"with torch.{'inference_mode' if s.part == 'inference_mode' else 'no_grad'}():"
    for line in s.run(train=train, out="got"):
        yield f"    {line}"
    yield from agree(s, train=train, said="without gradients and with")


@script("interface.row_permutation")
def row_permutation(s: Scene) -> Iterator[str]:
    """Permuted latents."""
    order = torch.randperm(s.n, generator=torch.Generator().manual_seed(s.case.seed)).tolist()
    yield TWIN
    yield f"order = {order}"
    yield from s.run(train=s.train, layer="twin", out="want")
    yield from s.run(train=s.train, z="z[order]", out="got")
    yield from agree(s, train=s.train, rows="[order]", said="of permuted latents")


@script("interface.batch_independence", variants=2)
def batch_independence(s: Scene) -> Iterator[str]:
    """Some latents alone and in the batch."""
    rows, n = (("[::2]", -(-s.n // 2)), (f"[:{s.subject.domain.min_n}]", s.subject.domain.min_n))[s.variant]
    yield TWIN
    yield from s.run(train=s.train, layer="twin", out="want")
    yield from s.run(train=s.train, z=f"z{rows}", n=n, out="got")
    yield from agree(s, train=s.train, rows=rows, said="of some latents alone and in the batch")


@script("interface.size_free", variants=5)
def size_free(s: Scene) -> Iterator[str]:
    """The latents again and again."""
    n = (26, 65, 129, 1025, 4099)[s.variant]
    yield TWIN
    yield f"rows = torch.arange({n}) % {s.n}"
    yield from s.run(train=s.train, layer="twin", out="want")
    yield from s.run(train=s.train, z="z[rows]", n=n, out="got")
    yield from agree(s, train=s.train, rows="[rows]", said=f"of the latents repeated to {n}")


@script("interface.regroup")
def regroup(s: Scene) -> Iterator[str]:
    """The latents in other batch entries, or another layout."""
    layout, _, count = s.part.partition(" x ")
    groups = s.n if count == "N" else 1
    train = bool(s.trait("deterministic", default=False))
    yield TWIN
    yield from s.run(train=train, layer="twin", out="want")
    yield f"got = {s.made(s.x(groups=groups, layout=layout), train=train)}"
    if s.call(train, layout).z_q.path != s.call(train).z_q.path:
        raise Unscripted("the layouts return different things")
    if s.label in {"loss", "state"}:
        yield from agree(s, train=train, said=f"of {groups} entries and of one")
        return
    yield from _read(s, layout, train)


def _read(s: Scene, layout: str, train: bool) -> Iterator[str]:
    if s.label == "value":
        got = f"{s.z_q(train=train, out='got', layout=layout)}.detach()"
        yield from compare(got, f"{s.z_q(train=train, out='want')}.detach()", "z_q of another layout")
        return
    yield from equal(
        s.codes(train=train, out="got", layout=layout), s.codes(train=train, out="want"), "codes of another layout"
    )


@script("interface.layout")
def layout(s: Scene) -> Iterator[str]:
    """Another layout."""
    yield from s.run(train=False, out="want")
    yield f"got = {s.made(s.x(layout=s.part), train=False)}"
    yield from _read(s, s.part, train=False)


@script("interface.noncontiguous", variants=2)
def noncontiguous(s: Scene) -> Iterator[str]:
    """The latents as they lie in memory otherwise."""
    train = not s.variant and bool(s.trait("deterministic", default=False))
    if s.part == "expanded":
        raise Unscripted("no script is written for expanded latents")
    yield TWIN
    yield f"x = {s.x()}.contiguous()"
    if s.part == "strided":
        yield 'gaps = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))'
        yield "gaps[..., ::2] = x"
        other = "gaps[..., ::2]"
    else:
        yield "back = tuple(reversed(range(x.ndim)))"
        other = "x.permute(*back).contiguous().permute(*back)"
    yield f"want = {s.made('x', train=train, layer='twin')}"
    yield f"got = {s.made(other, train=train)}"
    yield from agree(s, train=train, said=f"of {s.part} latents")


@script("interface.mask")
def mask(s: Scene) -> Iterator[str]:
    """A mask of ones, or masked latents and none."""
    kind, _, mode = s.part.partition("/")
    form = mask_layout(s.subject)
    if form is None or form != s.subject.plan.calls[0].layout:
        raise Unscripted("the mask is taken in another layout than the one that is used first")
    if kind == "nan":
        raise Unscripted("no script is written for NaN behind a mask")
    length = sizes(form.replace("D", ""), s.n, 1)
    shape = ", ".join(str(length[letter]) for letter in form.replace("D", ""))
    train = bool(s.trait("deterministic", default=False)) if kind == "ones" else mode != "eval"
    if s.label.startswith("gradient"):
        yield "z.requires_grad_()"
    if s.label not in {"raised", "padding in codebook"}:
        yield TWIN
    if kind == "ones":
        if s.label != "raised":
            yield from s.run(train=train, layer="twin", out="want")
        yield from s.run(train=train, out="got", more=f", mask=torch.ones({shape}, dtype=torch.bool)")
        if s.label != "raised":
            yield from agree(s, train=train, said="with a mask of ones and without")
        return
    keep = torch.rand(s.n, generator=torch.Generator().manual_seed(s.case.seed + 5)) < 0.6
    keep[: s.subject.domain.min_n] = True
    padding = HUGE * max(1.0, float(s.case.z.abs().max()))
    yield f"keep = torch.tensor({keep.long().tolist()}).bool()"
    yield f"padded = torch.where(keep[:, None], z, {padding:g})"
    if s.label not in {"raised", "padding in codebook"}:
        yield from s.run(train=train, layer="twin", out="want", z="z[keep]", n=int(keep.sum()))
    yield from s.run(train=train, out="got", z="padded", more=f", mask=keep.reshape({shape})")
    if s.label == "padding in codebook":
        yield "largest = max(t.abs().max().item() for t in layer.state_dict().values() if t.is_floating_point())"
        yield 'print("the largest number of the state is", largest, "and that of the latents", z.abs().max().item())'
        yield f"assert largest < {padding / 10:g}"
    elif s.label in {"gradient", "gradient of padding"}:
        if not s.call(train).losses:
            raise Unscripted("the layer returns no loss")
        wrong, right = (
            s.total(train=train, out=out, g=g) for out, g in (("got", "(g * keep[:, None])"), ("want", "g[keep]"))
        )
        yield f"wrong, right = (torch.autograd.grad(total, z)[0] for total in ({wrong}, {right}))"
        yield from compare(
            "wrong", "right", "with a mask a latent receives", must="and without the masked ones", tol=1e-3
        )
    elif s.label != "raised":
        rows = "[keep]"
        if s.label in {"value", "codes"}:
            yield from _kept(s, train, rows)
        else:
            yield from agree(s, train=train, said="with a mask and without")


def _kept(s: Scene, train: bool, rows: str) -> Iterator[str]:
    if s.label == "value":
        got = f"{s.z_q(train=train, out='got')}.detach(){rows}"
        yield from compare(got, f"{s.z_q(train=train, out='want')}.detach()", "z_q of kept latents", size="z.norm()")
        return
    got = s.codes(train=train, out="got") + rows
    yield from equal(got, s.codes(train=train, out="want"), "codes of kept latents")


@script("interface.accumulates")
def accumulates(s: Scene) -> Iterator[str]:
    """A second forward before the first backward."""
    if s.label not in {"second forward", "raised"}:
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    yield "z.requires_grad_()"
    yield from s.run(train=True, layer="copy.deepcopy(layer)", out="want")
    yield f"right, = torch.autograd.grad({s.total(train=True, out='want')}, z)"
    yield from s.run(train=True, out="got")
    yield from s.run(train=True, out="later", z="(z.flip(0) * 0.5)")
    yield f"wrong, = torch.autograd.grad({s.total(train=True, out='got')}, z)"
    yield from compare("wrong", "right", "after a second forward a latent receives", must="and without it")


@script("interface.state_round_trip")
def state_round_trip(s: Scene) -> Iterator[str]:
    """A layer and one that loaded its state."""
    train = s.part == "training on"
    if s.part == "result":
        yield from s.run(train=True)
    yield f"twin = {s.constructor()}"
    yield "twin.load_state_dict(copy.deepcopy(layer.state_dict()))"
    if s.label == "raised":
        yield "print(twin)"
        return
    yield from s.run(train=train, out="want")
    yield from s.run(train=train, layer="twin", out="got")
    if s.label == "state":
        yield from compare(
            f"{s.book(layer='twin')}.detach()",
            f"{s.book()}.detach()",
            "codes of the loaded layer after a pass",
            tol=1e-3,
        )
        return
    yield from agree(s, train=train, said="after loading the state")


@script("interface.copies")
def copies(s: Scene) -> Iterator[str]:
    """A layer and its copy."""
    how = "copy.deepcopy(layer)" if s.part == "deepcopy" else "pickle.loads(pickle.dumps(layer))"
    if s.label == "raised":
        yield from s.run(train=True, z="(z * 1).requires_grad_()")
        yield f"print({how})"
        return
    yield f"twin = {how}"
    if s.label == "value":
        yield from s.run(train=False, out="want")
        yield from s.run(train=False, out="got", layer="twin")
        yield from agree(s, train=False, said="of the copy")
        return
    yield from s.run(train=False, out="want", layer="twin")
    yield from s.run(train=True)
    yield from s.run(train=False, out="got", layer="twin")
    wrong, right = (f"{s.z_q(train=False, out=out)}.detach()" for out in ("got", "want"))
    yield from compare(wrong, right, "after training the original, z_q of the copy is", must="and was")


@script("interface.caches_coherent", variants=2)
def caches_coherent(s: Scene) -> Iterator[str]:
    """Codes renumbered after a pass."""
    if s.part == "cast" or s.label not in {"codes", "value", "stale"}:
        raise Unscripted("no script is written for a cast layer, nor for decode")
    s.plain()
    slot = s.tensor(s.subject.plan.slots[0])
    yield from s.run(train=False, out="want")
    if s.part == "write":
        yield f"{slot}.data.copy_({slot}.detach().roll(1, 0))  # the same codes, renumbered"
    else:
        yield "twin = copy.deepcopy(layer)"
        yield f"{slot.replace('layer', 'twin', 1)}.data.copy_({slot}.detach().roll(1, 0))"
        yield "layer.load_state_dict(twin.state_dict())  # the same codes, renumbered"
    yield from s.run(train=False, out="got")
    if s.variant == 0:
        wrong, right = (f"{s.z_q(train=False, out=out)}.detach()" for out in ("got", "want"))
        yield from compare(wrong, right, "with codes renumbered z_q is", size="(right.norm() + z.norm())")
        return
    yield from equal(s.k(train=False, out="got"), f"({s.k(train=False, out='want')} + 1) % len({slot})", "codes")
