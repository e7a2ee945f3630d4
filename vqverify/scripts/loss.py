"""What a loss is, and what it moves."""

from __future__ import annotations

from collections.abc import Iterator

from vqverify.case import prepare
from vqverify.invariants import pulls, weights
from vqverify.scripts.estimator import ALL
from vqverify.scripts.registry import script
from vqverify.scripts.say import compare
from vqverify.scripts.scene import Scene, Unscripted


def law(s: Scene) -> weights.Law:
    """The reading of what is declared that the row judged by.

    Raises:
        Unscripted: if the loss has other terms.
    """
    if s.trait("loss_coefficients") is None:
        raise Unscripted("the loss has other terms, which a script cannot take apart")
    prepare(s.subject, s.case)
    found = pulls.measure(s.subject, s.case)
    readings = [] if found is None else list(weights.laws(s.subject, found))
    if found is None or not readings:
        raise Unscripted("the weights of the loss could not be told")

    def worst(read: weights.Law) -> float:
        clauses = [*weights.weighed(s.subject, found, read), weights.value(s.subject, found, read)]
        return max(clause.margin or 0.0 for clause in clauses)

    return min(readings, key=worst)


def reduction(s: Scene, read: weights.Law) -> str:
    """The factor F as it is computed."""
    for text, value in (("1", 1.0), ("len(z)", s.n), ("z.numel()", s.n * s.dim)):
        for shares, more in ((1, ""), (s.levels, f" / {s.levels}")):
            if abs(read.factor * value * shares - 1) < 1e-9:
                return f" / {text}{more}" if text != "1" or more else ""
    raise Unscripted("the loss is reduced in an unusual way")


def gaps(s: Scene, *, squares: bool) -> Iterator[str]:
    """A training pass; z − q summed over levels as `gap`, and |z − q|² as `squares` where that is asked for."""
    if s.trait("structure") == "residual":
        yield f"E = {s.books()}"
        yield from s.run(train=True)
        yield "r, gap, squares = z.detach(), 0, 0" if squares else "r, gap = z.detach(), 0"
        yield f"for e, k in zip(E, {s.codes(train=True)}.T):"
        added = ", squares + (r - e[k]).square().sum()" if squares else ""
        yield f"    gap{', squares' if squares else ''}, r = gap + r - e[k]{added}, r - e[k]"
        return
    s.plain()
    if s.trait("metric") == "cosine":
        raise Unscripted("the latents that are compared with codes are made inside the pass")
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=True)
    yield f"gap = z.detach() - E[{s.k(train=True)}]"
    if squares:
        yield "squares = gap.square().sum()"


@script("loss.gradients")
def gradients(s: Scene) -> Iterator[str]:
    """∂loss/∂z beside 2aF(z − q), or ∂loss/∂e beside 2bF Σ(e − z)."""
    read = law(s)
    if s.label == "value":
        yield from value(s)
        return
    yield "z.requires_grad_()"
    yield from gaps(s, squares=False)
    F = reduction(s, read)
    if s.label == "commitment weight":
        yield f"wrong, = torch.autograd.grad({s.loss(train=True)}, z, {ALL})"
        yield from compare("wrong", f"2 * {read.a:g} * gap{F}", "∂loss/∂z holds", tol=1e-3)
        return
    if s.trait("structure") == "residual":
        raise Unscripted("no script is written for the codebook gradient of several levels")
    whole, part = s.stored()
    yield f"wrong = torch.autograd.grad({s.loss(train=True)}, {whole}, {ALL})[0]{part}"
    right = f"torch.zeros_like(E).index_add_(0, {s.k(train=True)}, -2 * {read.b:g} * gap{F})"
    yield from compare("wrong", right, "∂loss/∂e holds", tol=1e-3)


@script("loss.value")
def value(s: Scene) -> Iterator[str]:
    """The loss beside (a + b)F Σ|z − q|²."""
    read = law(s)
    yield from gaps(s, squares=True)
    found = f"{read.a + read.b:g} * squares{reduction(s, read)}"
    yield from compare(f"({s.loss(train=True)}).detach()", found, "the loss is", tol=1e-3)


@script("loss.descends")
def descends(s: Scene) -> Iterator[str]:
    """The product of ∂loss/∂z with z − q."""
    yield "z.requires_grad_()"
    yield from gaps(s, squares=False)
    yield f"wrong, = torch.autograd.grad({s.loss(train=True)}, z, {ALL})"
    yield "along = (wrong * gap).sum(-1)"
    yield 'print("⟨∂loss/∂z, z − q⟩ is", along, "and must not be below", 0.0)'
    yield "assert (along >= -1e-4 * wrong.norm() * gap.norm()).all()"


@script("loss.zero_at_codes")
def zero_at_codes(s: Scene) -> Iterator[str]:
    """The loss at codes."""
    if s.label == "negative":
        yield from s.run(train=True)
        yield f"loss = {s.loss(train=True)}"
        yield 'print("the loss is", loss.item(), "and must not be below", 0.0)'
        yield "assert loss >= 0"
        return
    s.plain()
    yield f"z = {s.book()}.detach().clone()[torch.arange({s.n}) % {len(s.subject.codebooks()[0])}]"
    yield from s.run(train=True)
    yield f"loss = {s.loss(train=True)}"
    yield 'print("at codes the loss is", loss.item(), "and must be", 0.0)'
    yield "assert loss.abs() <= 1e-6 * z.square().sum()"


@script("loss.duplication")
def duplication(s: Scene) -> Iterator[str]:
    """The loss of a batch twice beside that of the batch."""
    yield from s.run(train=True, layer="copy.deepcopy(layer)", out="once")
    yield from s.run(train=True, z="torch.cat([z, z])", n=2 * s.n, out="twice")
    wrong, right = (f"({s.loss(train=True, out=out)}).detach()" for out in ("twice", "once"))
    yield from compare(wrong, right, "the loss of the batch twice is")


@script("loss.repeats")
def repeats(s: Scene) -> Iterator[str]:
    """The losses of a batch once, twice and four times."""
    for times, out in ((1, "once"), (2, "twice"), (4, "often")):
        yield from s.run(
            train=True, layer="copy.deepcopy(layer)", z=f"torch.cat({times} * [z])", n=times * s.n, out=out
        )
    losses = ", ".join(f"({s.loss(train=True, out=out)}).item()" for out in ("once", "twice", "often"))
    yield f"L = [{losses}]"
    yield 'print("the batch once, twice and four times costs", L, "and L[2] - 3 * L[1] + 2 * L[0] must be", 0.0)'
    yield "assert abs(L[2] - 3 * L[1] + 2 * L[0]) <= 1e-4 * sum(map(abs, L)) + 2e-5"


@script("loss.homogeneous")
def homogeneous(s: Scene) -> Iterator[str]:
    """The loss of scaled latents and codes beside the scaled loss."""
    s.plain()
    yield from s.run(train=True, layer="copy.deepcopy(layer)", out="once")
    yield f"{s.tensor(s.subject.plan.slots[0])}.data.mul_(4)"
    yield from s.run(train=True, z="(4 * z)", out="more")
    wrong, right = (f"({s.loss(train=True, out=out)}).detach()" for out in ("more", "once"))
    yield from compare(wrong, f"16 * {right}", "with latents and codes times 4 the loss is")


@script("loss.trains")
def trains(s: Scene) -> Iterator[str]:
    """The gradients that a loss sends."""
    yield f"z = {_some(s)}.requires_grad_()"
    if s.label == "latents" and not s.call(train=True).losses:
        raise Unscripted("the layer returns no loss, though it declares a weight")
    if s.label in {"latents", "idle"}:
        yield from s.run(train=True, n=64)
        yield f"({s.loss(train=True)}).backward()"
        leaves = "[z]" if s.label == "latents" else "[z, *layer.parameters()]"
        yield f"sizes = [0.0 if p.grad is None else p.grad.abs().max().item() for p in {leaves}]"
        yield 'print("the loss sends gradients of size", sizes, "and one must be above", 0.0)'
        yield "assert any(sizes)"
        return
    name = s.witness.message.partition("parameter ")[2].partition(" ")[0]
    yield "before = {name: p.detach().clone() for name, p in layer.named_parameters()}"
    yield from s.run(train=True, n=64)
    task = f"{s.z_q(train=True)}.square().sum()"
    yield f"({task} + {s.loss(train=True)}).backward()" if s.call(train=True).losses else f"{task}.backward()"
    yield f'name, p = "{name}", dict(layer.named_parameters())["{name}"]'
    yield 'print("gradient of", name, "is", p.grad, "and the pass moved it by", torch.dist(p, before[name]).item())'
    yield "assert (p.grad is not None and p.grad.any()) or not torch.equal(p, before[name])"


def _some(s: Scene) -> str:
    """Latents of the size of the codes, as many as the row takes at least."""
    books = s.subject.codebooks()
    size = float(books[0].abs().mean()) if books and books[0].shape[1] == s.dim else 1.0
    return f"({size or 1.0:.2g} * torch.randn(64, {s.dim}))"


@script("loss.terms")
def terms(s: Scene) -> Iterator[str]:
    """The losses at half, once and twice a weight."""
    weight = float(s.subject.arguments[s.part])
    build, seed = s.constructor({s.part: "weight"}), s.witness.spec.seed
    yield "losses = []"
    yield f"for weight in ({weight / 2:g}, {weight:g}, {2 * weight:g}):"
    yield f"    torch.manual_seed({seed})"
    yield f"    layer = {build}"
    for line in s.state(trains=True):
        yield f"    {line}"
    for line in s.run(train=True):
        yield f"    {line}"
    yield f"    losses.append(({s.loss(train=True)}).item())"
    if s.label == "idle":
        yield f'print("with {s.part} at half, once and twice its value the losses are", losses, "and must differ")'
        yield "assert losses[0] != losses[1]"
        return
    yield "wrong, right = losses[2] - losses[1], 2 * (losses[1] - losses[0])"
    yield f'print("from {s.part} once to twice the loss rises by", wrong, "and must by", right)'
    yield "assert abs(wrong - right) <= 1e-3 * abs(right)"
