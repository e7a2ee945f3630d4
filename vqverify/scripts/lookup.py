"""Which code is chosen, and what stands in place of the latent."""

from __future__ import annotations

from collections.abc import Iterator

from vqverify.invariants.lookup_cosine import rescaled
from vqverify.scripts.latents import latents
from vqverify.scripts.numerals import literal
from vqverify.scripts.registry import script
from vqverify.scripts.say import compare, equal
from vqverify.scripts.scene import Scene, Unscripted, rows_of


def metric(s: Scene) -> str:
    """The metric whose law holds, as the row reads it."""
    finding = s.subject.traits["metric"]
    return "euclidean" if finding.value == "dot" and finding.origin == "identified" else str(finding.value)


def regret(s: Scene, k: str, z: str = "z") -> Iterator[str]:
    """What the chosen code is farther, or less similar, than the best one."""
    match metric(s):
        case "euclidean":
            yield f"d = ({z}.detach().double()[:, None] - E.double()).square().sum(-1)"
            best, said = "d.min(1).values", "squared distance of a chosen code"
        case "cosine":
            yield f"d = F.cosine_similarity({z}.detach().double()[:, None], E.double(), dim=-1)"
            best, said = "d.max(1).values", "similarity of a chosen code"
        case "dot":
            yield f"d = {z}.detach().double() @ E.double().T"
            best, said = "d.max(1).values", "product with a chosen code"
        case other:
            raise Unscripted(f"no script is written for the metric {other}")
    size = "1" if metric(s) == "cosine" else f"({z}.norm() + E.norm()) ** 2"
    yield from compare(f"d.gather(1, {k}[:, None])[:, 0]", best, said, must="of the best one", size=size, tol=1e-5)


@script("lookup.nearest")
def nearest(s: Scene) -> Iterator[str]:
    """The distance of the chosen code beside that of the nearest."""
    if s.trait("structure") == "residual":
        yield from stacked(s, train=True)
        return
    if s.label == "range":
        yield from s.run(train=True)
        yield f"k = {s.k(train=True)}"
        yield f'print("codes", k, "and must lie in", {[0, len(s.subject.codebooks()[0]) - 1]})'
        yield f"assert 0 <= k.min() and k.max() < {len(s.subject.codebooks()[0])}"
        return
    before, z = latents(s)
    yield f"E = {s.book()}.detach().clone()"
    yield from before
    yield from s.run(train=True)
    yield from regret(s, s.k(train=True), z)


def stacked(s: Scene, *, train: bool) -> Iterator[str]:
    """How much nearer than the chosen code of a level some other code is."""
    yield f"E, r, worst = {s.books()}, z, 0"
    yield from s.run(train=train)
    yield f"for e, k in zip(E, {s.codes(train=train)}.T):  # level by level"
    yield "    d = (r[:, None] - e).square().sum(-1)"
    yield "    worst, r = max(worst, (d.gather(1, k[:, None])[:, 0] - d.min(1).values).max().item()), r - e[k]"
    yield 'print("squared distance that the chosen codes of a level lose", worst, "and must lose", 0.0)'
    yield "assert worst <= 1e-5 * (z.norm() + sum(e.norm() for e in E)) ** 2"


@script("lookup.nearest_off_centre", stated=False)
def off_centre(s: Scene) -> Iterator[str]:
    """The same with codes and latents far from the origin."""
    s.plain()
    whole, part = s.stored()
    yield f"{whole}{part}.data += 1000 * {whole}{part}.std()  # far from the origin"
    yield f"E = {s.book()}.detach().clone()"
    yield "z = E[torch.randint(len(E), (64,))] + (E - E.mean(0)).std() * torch.randn(64, E.shape[1])"
    yield from s.run(train=True, n=64)
    yield "d = (z.double()[:, None] - E.double()).square().sum(-1)"
    yield from compare(
        f"d.gather(1, {s.k(train=True)}[:, None])[:, 0]", "d.min(1).values", "squared distance of a chosen code",
        must="of the nearest", tol=1e-3,
    )  # fmt: skip


@script("lookup.lower_precision", stated=False)
def lower_precision(s: Scene) -> Iterator[str]:
    """The same with the flag for a lower precision, whose roundings are allowed for."""
    s.plain()
    yield f"torch.manual_seed({s.witness.spec.seed})"
    yield f"layer = {s.constructor({s.part: 'True'})}"
    if s.case.codebook is not None:
        whole, part = s.stored()
        yield f"{whole}{part}.data.copy_({literal(s.case.codebook[0])})"
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=False)
    yield "d = (z.double()[:, None] - E.double()).norm(dim=-1)"
    yield from compare(
        f"d.gather(1, {s.k(train=False)}[:, None])[:, 0]", "d.min(1).values", "distance of a chosen code",
        must="of the nearest", size="(z.norm(dim=1).max() + E.norm(dim=1).max())", tol=1e-2,
    )  # fmt: skip


@script("lookup.forward_is_code", "update.uses_old_codes")
def forward_is_code(s: Scene) -> Iterator[str]:
    """z_q beside the codes that are returned with it, as they were before the pass."""
    s.plain()
    yield f"E = {s.book()}.detach().clone()  # before the pass"
    yield from s.run(train=s.train)
    yield from compare(
        f"{s.z_q(train=s.train)}.detach()", f"E[{s.k(train=s.train)}]", "z_q holds", must="and its codes hold",
        size="(right.norm() + z.norm())",
    )  # fmt: skip


@script("lookup.codes_are_fixed_points")
def fixed_points(s: Scene) -> Iterator[str]:
    """The codes of codes beside the codes."""
    s.plain()
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=False, z="E", n=len(s.subject.codebooks()[0]))
    yield from compare(f"E[{s.k(train=False)}]", "E", "the code of a code holds", tol=1e-3)


@script("lookup.code_determines")
def code_determines(s: Scene) -> Iterator[str]:
    """How far apart z_q of latents with equal codes is."""
    yield from s.run(train=s.train)
    yield f"z_q, k = {s.z_q(train=s.train)}.detach(), {s.codes(train=s.train)}.reshape(len(z), -1)"
    yield "apart = (z_q[:, None] - z_q).norm(dim=-1) * (k[:, None] == k).all(-1)"
    yield 'print("latents with equal codes have z_q that are apart by", apart.max().item(), "and must be by", 0.0)'
    yield "assert apart.max() <= 1e-4 * (z_q.norm() + z.norm())"


@script("lookup.decode")
def decode(s: Scene) -> Iterator[str]:
    """What decode gives beside z_q."""
    decoder = next((found for found in s.subject.plan.decoders if found.method == s.part), None)
    if decoder is None:
        raise Unscripted(f"there is no decoder {s.part}")
    yield from s.run(train=False)
    form, given = decoder.codes_form, s.codes(train=False)
    own = s.call(train=False).codes
    if len(own) == 1 and own[0].form == form:
        given = s.at(own[0].path, train=False)
    elif form in {"BN", "BNL", "BLN"}:
        given = f"{given}[None]" if form != "BLN" else f"{given}.T[None]"
    elif form not in {"N", "F", "NL", "FL"}:
        raise Unscripted(f"{s.part} takes codes of the unusual axes {form}")
    yield f"decoded = layer.{s.part}({given})" + "".join(f"[{step!r}]" for step in decoder.path)
    wrong, right = f"{rows_of('decoded', decoder.output_form, s.dim)}.detach()", f"{s.z_q(train=False)}.detach()"
    if s.label == "raised":
        yield "print(decoded)"
    elif s.label == "shape":
        yield f"wrong, right = tuple({wrong}.shape), tuple({right}.shape)"
        yield f'print("{s.part} gives rows", wrong, "and z_q has", right)'
        yield "assert wrong == right"
    else:
        yield from compare(wrong, right, f"{s.part} gives", must="and z_q holds", size="(right.norm() + z.norm())")


@script("lookup.tie_stable", variants=3, stated=False)
def tie_stable(s: Scene) -> Iterator[str]:
    """Codes of latents half-way between codes, in train and eval, alone and in the batch."""
    s.plain()
    whole, part = s.stored()
    size, dim = s.subject.codebooks()[0].shape
    yield f"E = torch.randint(-2, 3, ({-(-size // 4)}, {dim})).repeat_interleave(4, 0)[:{size}].float()"
    yield f"{whole}{part}.data.copy_(E * torch.tensor([1.0, -1.0]).repeat({-(-size // 2)})[:{size}, None])"
    yield f"z = torch.randint(-2, 3, (40, {dim})).float()  # small integers: all sums are exact, and ties are ties"
    yield "z[::5] = 0"
    if s.label == "modes":
        yield from s.run(train=False, out="second", n=40)
        yield from s.run(train=True, out="first", n=40)
        yield from equal(
            s.codes(train=False, out="second"), s.codes(train=True, out="first"), "codes in eval", "in train"
        )
        return
    rows, n = (("z[-1:]", 1), ("z[-3:]", 3), ("z.repeat(8, 1)", 320))[s.variant]
    yield from s.run(train=False, out="first", n=40)
    yield from s.run(train=False, out="second", z=rows, n=n)
    right = s.k(train=False, out="first") + (f"[-{n}:]" if n < 40 else ".repeat(8)")
    yield from equal(s.k(train=False, out="second"), right, f"codes in a batch of {n}", "in one of 40")


@script("lookup.star_shaped")
def star_shaped(s: Scene) -> Iterator[str]:
    """What latents half-way to their codes choose beside these codes."""
    s.plain()
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=False)
    yield f"k = {s.k(train=False)}"
    yield "half = (z + E[k]) / 2"
    yield from s.run(train=False, z="half", out="again")
    yield "d = (half[:, None] - E).square().sum(-1)"
    wrong, right = f"d.gather(1, {s.k(train=False, out='again')}[:, None])", "d.gather(1, k[:, None])"
    yield from compare(
        wrong, right, "half-way to its code a latent chooses one at", must="and its own is at", size="(z.norm() + E.norm()) ** 2",
        tol=1e-5,
    )  # fmt: skip


@script("lookup.equivariance", variants=3)
def equivariance(s: Scene) -> Iterator[str]:
    """z_q of scaled, moved or renumbered latents and codes beside z_q, scaled and moved."""
    s.plain()
    whole, part = s.stored()
    factor, shift, order = ((1, 0, ".flip(0)"), (3, 0, ""), (1, 4, ""))[s.variant]
    if s.variant and s.part == "permuted":
        raise Unscripted("codes can only be renumbered")
    moved = f"{factor} * (%s)" if factor != 1 else f"(%s) + {shift}" if shift else "%s"
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=False, out="first")
    yield f"{whole}{part}.data.copy_({moved % f'E{order}'})"
    yield from s.run(train=False, out="second", z=f"({moved % 'z'})" if moved != "%s" else "z")
    if s.label == "codes":  # a latent's code is another one: at its distance, where that was a tie
        wrong, right = (
            f"({moved % f'E[{s.k(train=False, out=out)}]'} - {moved % 'z'}).norm(dim=1)" for out in ("first", "first")
        )
        k = s.k(train=False, out="second")
        wrong = f"({whole}{part}.detach()[{k}] - {moved % 'z'}).norm(dim=1)"
        yield from compare(wrong, right, "after the move, distance of a chosen code")
        return
    first, second = (f"{s.z_q(train=False, out=out)}.detach()" for out in ("first", "second"))
    yield from compare(second, moved % first, "after the move z_q holds", size="(right.norm() + z.norm())", tol=1e-3)


@script("lookup.discrete")
def discrete(s: Scene) -> Iterator[str]:
    """How much z_q moves with a small move of the latents."""
    yield from s.run(train=False)
    yield from s.run(train=False, z="(z + 1e-4)", out="near")
    yield f"moved = ({s.z_q(train=False, out='near')} - {s.z_q(train=False)}).detach().norm(dim=1)"
    yield 'print("with a move of 1e-4, z_q moves by", moved.median().item(), "and must by", 0.0)'
    yield "assert moved.median() == 0"


@script("lookup.cosine_scale_free")
def cosine_scale_free(s: Scene) -> Iterator[str]:
    """What latents and multiples of them are given."""
    scale = rescaled(s.case.z, s.case.seed)
    yield f"scale = {literal(scale)}"
    yield from s.run(train=s.train, out="first", layer="copy.deepcopy(layer)")
    yield from s.run(train=s.train, out="second", z="(scale * z)")
    if s.label == "codes":
        yield from equal(
            s.codes(train=s.train, out="second"),
            s.codes(train=s.train, out="first"),
            "codes of multiples of the latents",
        )
        return
    wrong, right = (f"{s.z_q(train=s.train, out=out)}.detach()" for out in ("second", "first"))
    yield from compare(wrong, right, "z_q of multiples of the latents holds", tol=1e-3)


@script("lookup.cosine_sphere")
def cosine_sphere(s: Scene) -> Iterator[str]:
    """The norms of codes after a step."""
    if s.label != "norm":
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    yield from s.run(train=True)
    yield from compare(
        f"{s.book()}.detach().norm(dim=1)", f"torch.ones({len(s.subject.codebooks()[0])})", "after a step a code has the norm",
        tol=1e-3,
    )  # fmt: skip
