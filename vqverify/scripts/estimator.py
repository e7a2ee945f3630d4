"""Which gradient a latent receives."""

from __future__ import annotations

from collections.abc import Iterator

from vqverify.scripts.lookup import stacked
from vqverify.scripts.registry import script
from vqverify.scripts.say import compare
from vqverify.scripts.scene import Scene, Unscripted

ALL = "materialize_grads=True"  # zeros, and no error, where nothing flows
ROTATED = (  # λRᵀ of the rotation that takes z to q, applied to what is sent
    "a, b, h = F.normalize({z}), F.normalize(q := {q}), {g}",
    "u, scale = F.normalize(a + b), q.norm(2, 1, True) / {z}.norm(2, 1, True)",
    "right = (scale * (h - 2 * u * (u * h).sum(1, True) + 2 * a * (b * h).sum(1, True))).detach()",
)


def sent(s: Scene, g: str = "g") -> Iterator[str]:
    """A training pass and what the latents receive for g, as `wrong`; codes before the pass as E."""
    yield "z.requires_grad_()"
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=True)
    yield f"wrong, = torch.autograd.grad({s.z_q(train=True)}, z, {g}, retain_graph=True)"


def family(s: Scene) -> str:
    """The estimator whose law holds.

    Raises:
        Unscripted: if no script is written for it.
    """
    name = str(s.trait("estimator"))
    if name not in {"straight-through", "rotation"}:
        raise Unscripted(f"no script is written for the estimator {name}")
    return name


def law(s: Scene, g: str = "g") -> Iterator[str]:
    """What the estimator sends, as `right`."""
    if family(s) == "straight-through":
        yield f"right = {g}"
        return
    yield from (line.format(z="z", q=f"E[{s.k(train=True)}]", g=g) for line in ROTATED)


@script(
    "estimator.jacobian", "rotation.angle", "rotation.norm", "rotation.maps", "rotation.orthogonal",
    "rotation.determinant", "rotation.fixes_complement", "rotation.minimal", "rotation.accuracy", "gap.bound",
    "gap.tight",
)  # fmt: skip
def jacobian(s: Scene) -> Iterator[str]:
    """What the latents receive beside the estimator's law."""
    s.plain()
    g = "g" if s.case.g.any() else "torch.ones_like(z)"
    yield from sent(s, g)
    yield from law(s, g)
    yield from compare("wrong", "right", "a latent receives", tol=1e-3)


@script("estimator.consistent", "gap.zero_quantisation")
def consistent(s: Scene) -> Iterator[str]:
    """What codes receive beside what is sent to them."""
    s.plain()
    family(s)
    yield from s.run(train=False)
    yield f"z = {s.book()}.detach().clone()[{s.k(train=False)}].requires_grad_()"
    yield from list(sent(s))[2:]
    yield from compare("wrong", "g", "a latent that is its code receives", must="and is sent", tol=1e-3)


@script("estimator.no_bypass")
def no_bypass(s: Scene) -> Iterator[str]:
    """What the latents receive beside what the estimator sends."""
    s.plain()
    yield from sent(s, "(g + 1)")
    yield from law(s, "(g + 1)")
    yield from compare("wrong", "right", "a latent receives", must="of which the estimator sends", tol=1e-3)


@script("estimator.local")
def local(s: Scene) -> Iterator[str]:
    """What latents receive that are sent nothing."""
    yield "z.requires_grad_()"
    yield from s.run(train=True)
    yield "g = torch.ones_like(z)"
    yield "g[::2] = 0  # every other latent is sent nothing"
    yield f"wrong = torch.autograd.grad({s.z_q(train=True)}, z, g)[0][::2]"
    yield 'print("latents that are sent nothing receive", wrong, "and must receive", 0.0)'
    yield "assert not wrong.any()"


@script("estimator.linear", variants=3)
def linear(s: Scene) -> Iterator[str]:
    """What latents receive for a multiple beside the multiple of what they receive."""
    factor = (2.0, -1.0, 1024.0)[s.variant]
    yield "z.requires_grad_()"
    yield from s.run(train=True)
    yield f"z_q = {s.z_q(train=True)}"
    yield f"wrong, = torch.autograd.grad(z_q, z, {factor:g} * g, retain_graph=True)"
    yield from compare(
        "wrong", f"{factor:g} * torch.autograd.grad(z_q, z, g)[0]", f"for {factor:g} g a latent receives",
        must=f"and {factor:g} times what it receives for g is",
    )  # fmt: skip


@script("estimator.finite")
def finite(s: Scene) -> Iterator[str]:
    """A gradient that is no number."""
    yield "z.requires_grad_()"
    yield from s.run(train=True)
    if s.label.startswith("loss"):
        yield f"loss = {s.loss(train=True)}"
        yield f"wrong, = torch.autograd.grad(loss, z, {ALL})"
        yield 'print("the loss is", loss.item(), "its gradient", wrong, "and both must be finite")'
        yield "assert loss.isfinite() and wrong.isfinite().all()"
        return
    yield f"z_q = {s.z_q(train=True)}"
    yield f"wrong, = torch.autograd.grad(z_q, z, g, {ALL})"
    yield 'print("z_q is", z_q.detach(), "the gradient", wrong, "and both must be finite")'
    yield "assert z_q.isfinite().all() and wrong.isfinite().all()"


@script("estimator.detached")
def detached(s: Scene) -> Iterator[str]:
    """What is left when the gradient is differentiated again."""
    s.plain()
    yield "z.requires_grad_()"
    yield from s.run(train=True)
    yield "g = torch.ones_like(z).requires_grad_()"
    yield f"got, = torch.autograd.grad({s.z_q(train=True)}, z, g, create_graph=True)"
    yield f"wrong, = torch.autograd.grad(got.square().sum(), z, {ALL})"
    yield 'print("differentiated again, the gradient is", wrong, "and must be", 0.0)'
    yield "assert not wrong.any()"


@script("estimator.same_in_eval")
def same_in_eval(s: Scene) -> Iterator[str]:
    """What latents receive in eval and in train."""
    if s.case.history:
        raise Unscripted("the row says nothing of a layer with a history")
    yield "z.requires_grad_()"
    yield from s.run(train=True, out="first", layer="copy.deepcopy(layer)")
    yield from s.run(train=False, out="second")
    wrong, right = (s.z_q(train=train, out=out) for train, out in ((False, "second"), (True, "first")))
    yield f"wrong, right = (torch.autograd.grad(z_q, z, g)[0] for z_q in ({wrong}, {right}))"
    yield from compare("wrong", "right", "in eval a latent receives", must="and in train", tol=1e-3)


@script("estimator.no_codebook_leak")
def no_codebook_leak(s: Scene) -> Iterator[str]:
    """The gradient that a loss on z_q gives the codebook."""
    whole, _ = s.stored()
    if s.part == "training":
        yield "z.requires_grad_()"
    yield from s.run(train=True)
    yield f"z_q = {s.z_q(train=True)}"
    yield "if z_q.requires_grad: z_q.sum().backward()"
    yield f'print("a loss on z_q gives the codebook the gradient", {whole}.grad, "and must give", None)'
    yield f"assert {whole}.grad is None or not {whole}.grad.any()"


@script("estimator.zero_loss_weight", stated=False)
def zero_loss_weight(s: Scene) -> Iterator[str]:
    """What the loss sends with its weight at 0."""
    if s.part not in s.subject.arguments:
        raise Unscripted(f"the constructor takes no {s.part}")
    yield "z.requires_grad_()"
    yield f"torch.manual_seed({s.witness.spec.seed})"
    yield f"layer = {s.constructor({s.part: '0.0'})}"
    yield from s.run(train=True)
    yield f"loss = {s.loss(train=True)}"
    yield f"wrong = torch.autograd.grad(loss, z, {ALL})[0] if loss.requires_grad else torch.zeros_like(z)"
    yield f'print("with {s.part} at 0 the loss sends", wrong, "and must send", 0.0)'
    yield "assert not wrong.any()"


@script("residual.gradient")
def residual(s: Scene) -> Iterator[str]:
    """What the latents receive beside the composed law J₁ + J₂(I − J₁) + …, level by level."""
    if s.label == "unreached":
        raise Unscripted("no script is written for a level that the loss does not reach")
    yield "z.requires_grad_()"
    if family(s) == "straight-through":
        yield from s.run(train=True)
        yield f"wrong, = torch.autograd.grad({s.z_q(train=True)}, z, g + 1)"
        yield from compare("wrong", "g + 1", "a latent receives", must="and is sent", tol=1e-3)
        return
    yield f"E = {s.books()}"
    yield from s.run(train=True)
    yield f"q = [e[k] for e, k in zip(E, {s.codes(train=True)}.T)]"
    yield "r, right, g = z.detach() - sum(q), 0, torch.ones_like(z)"
    yield f"wrong, = torch.autograd.grad({s.z_q(train=True)}, z, g)"
    yield "for c in q[::-1]:  # J₁ + J₂(I − J₁) + …, the last level first"
    yield "    a, b = F.normalize(r := r + c), F.normalize(c); u, h = F.normalize(a + b), g - right"
    back = "(h - 2 * u * (u * h).sum(1, True) + 2 * a * (b * h).sum(1, True))"
    yield f"    right += c.norm(2, 1, True) / r.norm(2, 1, True) * {back}"
    yield from compare("wrong", "right", "a latent receives", must="and must receive", tol=1e-3)


@script("residual.sum")
def residual_sum(s: Scene) -> Iterator[str]:
    """z_q beside the sum of its codes; or what the codes of a level lose."""
    if s.label == "residual":
        yield from stacked(s, train=s.train)
        return
    yield f"E = {s.books()}"
    yield from s.run(train=s.train)
    codes = s.codes(train=s.train)
    yield from compare(
        f"{s.z_q(train=s.train)}.detach()", f"sum(e[k] for e, k in zip(E, {codes}.T))", "z_q holds",
        must="and the sum of its codes", size="(right.norm() + z.norm())",
    )  # fmt: skip
