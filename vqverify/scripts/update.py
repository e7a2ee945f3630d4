"""How an EMA codebook moves."""

from __future__ import annotations

from collections.abc import Iterator

from vqverify.scripts.estimator import ALL
from vqverify.scripts.registry import script
from vqverify.scripts.say import compare, shown
from vqverify.scripts.scene import Scene, Unscripted, part_of


def decay(s: Scene) -> float:
    """γ, as declared or found.

    Raises:
        Unscripted: if it is unknown.
    """
    found = s.trait("decay")
    if found is None:
        raise Unscripted("the decay is unknown")
    return float(found)


def smoothed(s: Scene, N: str = "N2") -> str:
    """What sums are divided by."""
    eps = float(s.trait("smoothing", 0.0) or 0.0)
    kind = s.trait("smoothing_kind", "laplace" if eps else "none")
    if not eps or kind == "none" or s.trait("smoothing_stored", False):
        return N
    return (
        f"(({N} + {eps:g}) / ({N}.sum() + len({N}) * {eps:g}) * {N}.sum())"
        if kind == "laplace"
        else f"{N}.clamp({eps:g})"
    )


def before(s: Scene) -> Iterator[str]:
    """Counts, sums and codes before the pass: N, m, E."""
    N, m = s.ema()
    yield f"N, m, E = ({N}.clone(), {m}.clone(), {s.book()}.detach().clone())"


def step(s: Scene) -> Iterator[str]:
    """One training pass; what it was given a code as n and S."""
    yield from before(s)
    yield from s.run(train=True)
    yield f"k = {s.k(train=True)}"
    unit = "F.normalize(z, dim=-1)" if s.trait("metric") == "cosine" else "z"
    yield f"n, S = torch.bincount(k, minlength=len(E)).to(N), torch.zeros_like(m).index_add_(0, k, {unit}.to(m))"


@script("update.ema_law", "update.conserves")
def ema_law(s: Scene) -> Iterator[str]:
    """Counts, sums and codes after a step beside their moving averages."""
    yield from step(s)
    g, (N, m) = decay(s), s.ema()
    if s.label == "codes":
        yield f"N2, m2 = {N}, {m}"
        right = f"(m2 / {smoothed(s)}[:, None])"
        right = f"F.normalize({right}, dim=-1)" if s.subject.domain.codebook == "sphere" else right
        yield from compare(s.book() + ".detach()", right, "after a step a code holds", must="and their averages say")
    elif s.label == "counts":
        if s.trait("smoothing_stored", False):
            raise Unscripted("the counts are kept smoothed")
        yield from compare(N, f"{g:g} * N + {1 - g:.10g} * n", "after a step a count is")
    else:
        yield from compare(m, f"{g:g} * m + {1 - g:.10g} * S", "after a step a sum holds")


@script("update.ema_is_commitment", "update.convex", "update.fixed_point")
def ema_is_commitment(s: Scene) -> Iterator[str]:
    """Codes after a step beside the quotient of the averages."""
    if s.subject.domain.codebook == "sphere":
        raise Unscripted("the codes are kept on the sphere")
    yield from step(s)
    g = decay(s)
    yield f"N2, m2 = {g:g} * N + {1 - g:.10g} * n, {g:g} * m + {1 - g:.10g} * S"
    used = "[N2 > 1e-3]"
    yield from compare(
        f"{s.book()}.detach(){used}", f"(m2 / {smoothed(s)}[:, None]){used}", "after a step a code holds"
    )


@script("update.hull")
def hull(s: Scene) -> Iterator[str]:
    """Codes after a step beside the way from where they were to the mean of their latents."""
    s.plain()
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=True)
    yield f"k, E2 = {s.k(train=True)}, {s.book()}.detach()"
    yield "mean = torch.stack([z.detach()[k == i].mean(0) if (k == i).any() else E[i] for i in range(len(E))])"
    yield "past = (E2 - E).norm(dim=1) + (E2 - mean).norm(dim=1) - (mean - E).norm(dim=1)"
    yield 'print("codes are off the way to the mean of their latents by", past.max().item(), "and must be by", 0.0)'
    yield "assert (past <= 0.02 * (mean - E).norm(dim=1) + 1e-3 * (E.norm(dim=1) + mean.norm(dim=1))).all()"


@script("update.empty_code_still")
def empty_code_still(s: Scene) -> Iterator[str]:
    """Codes without latents, after a step and before."""
    yield from step(s)
    if s.trait("smoothing_kind", "none") != "none" and s.trait("smoothing"):
        g = decay(s)
        yield f"N2 = {g:g} * N + {1 - g:.10g} * n"
        law = f"(E * (N2 / {smoothed(s)})[:, None])[n == 0]"
    else:
        law = "E[n == 0]"
    yield from compare(f"{s.book()}.detach()[n == 0]", law, "a code without latents holds", must="and held", tol=1e-3)


@script("update.initial_state")
def initial_state(s: Scene) -> Iterator[str]:
    """Sums of a fresh layer beside counts times codes."""
    yield from before(s)
    if s.label == "zero counts":
        yield 'print("fresh counts are", N, "and must be above", 0.0)'
        yield "assert (N > 0).all()"
        return
    if s.subject.domain.codebook == "sphere":
        raise Unscripted("the codes are kept on the sphere")
    yield from compare("m", "N[:, None] * E", "a fresh sum holds", must="and count times code")


@script("update.frozen")
def frozen(s: Scene) -> Iterator[str]:
    """Codes after an eval pass and before."""
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=False)
    yield from compare(f"{s.book()}.detach()", "E", "after an eval pass a code holds", must="and held", tol=0)


@script("update.first_batch", warm=False, stated=False)
def first_batch(s: Scene) -> Iterator[str]:
    """The way from a first code to its mean, over the code after the step and straight."""
    s.plain()
    count = len(s.subject.codebooks()[0])
    yield f"z = torch.randn({16 * count}, {s.dim})"
    yield from s.run(train=True, n=16 * count)
    yield f"k, q, E = {s.k(train=True)}, {s.z_q(train=True)}.detach(), {s.book()}.detach()"
    yield "mean = torch.stack([z[k == j].mean(0) for j in k.unique()])"
    yield "first = torch.stack([q[k == j][0] for j in k.unique()])"
    yield "new = E[k.unique()]"
    wrong, right = "(new - first).norm(dim=1) + (mean - new).norm(dim=1)", "(mean - first).norm(dim=1)"
    yield from compare(
        wrong, right, "from its place over the code after the step to its mean it is", must="and straight it is",
        size="(right.norm() + first.norm())", tol=1e-2,
    )  # fmt: skip


@script("update.consistent_state", stated=False)
def consistent_state(s: Scene) -> Iterator[str]:
    """Codes beside sums over counts, after something that writes them."""
    s.ema()
    if s.subject.domain.codebook == "sphere":
        raise Unscripted("the codes are kept on the sphere")
    layer = "layer"
    if s.part in {"step", "loaded"}:
        yield from s.run(train=True)
    elif s.part.endswith("="):
        shape = list(getattr(s.subject.module, s.part[:-1]).shape)
        yield f"layer.{s.part[:-1]} = torch.randn({', '.join(map(str, shape))})"
    else:
        raise Unscripted("no script is written for a method that writes the codebook")
    if s.part == "loaded":
        layer = "twin"
        yield f"twin = {s.constructor()}"
        yield "twin.load_state_dict(layer.state_dict())"
    N, m = (s.tensor(slot, layer) for slot in s.subject.plan.accumulators[0])
    yield f"N2 = {N}"
    said = {"step": "after a step", "loaded": "after loading"}.get(s.part, f"after the write to {s.part[:-1]}")
    yield from compare(
        f"{s.book(layer=layer)}.detach()", f"({m} / {smoothed(s)}[:, None])", f"{said} a code holds",
        must="and sums over counts", tol=1e-3,
    )  # fmt: skip


@script("update.expiry", variants=2, stated=False)
def expiry(s: Scene) -> Iterator[str]:
    """What becomes of a code that nothing uses, or of one that much is counted for."""
    if not s.subject.plan.accumulators or s.subject.codebooks()[0].shape[1] != s.dim:
        raise Unscripted("counts and sums of the moving averages were not found, or the latents are projected first")
    rare = s.label in {"rare", "sums"} or (s.label == "contradicted" and not s.variant)
    if not rare and s.label not in {"frequent", "contradicted"}:
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    if s.trait("replacement_rule", "count") != "count":
        raise Unscripted("no script is written for codes that are replaced by age")
    (N, m), count = map(s.tensor, s.subject.plan.accumulators[0]), len(s.subject.codebooks()[0])  # of the first level
    yield f"E = {s.book()}.detach().clone()"
    yield f"{N}.data.fill_(100)"
    if rare:
        yield f"{N}.data[0] = 0  # a code that nothing uses"
    yield f"{m}.data.copy_(E * {N}[:, None])"
    yield f"z = E[1] + 0.01 * torch.randn({count}, {s.dim})"
    yield from s.run(train=True, n=count)
    if s.label == "sums":
        yield from compare(f"{m}[0]", f"{N}[0] * {s.book()}.detach()[0]", "the sum of the replaced code holds")
    elif rare:
        yield f"apart = ({s.book()}.detach()[0] - z).norm(dim=1).min()"
        yield 'print("the unused code is", apart.item(), "away from every latent, and one that is replaced is", 0.0)'
        yield "assert apart <= 1e-4 * z.norm(dim=1).max()"
    else:
        yield from compare(f"{s.book()}.detach()[0]", "E[0]", "a code with count 100 holds", must="and held", tol=1e-2)


@script("update.gradient_codes")
def gradient_codes(s: Scene) -> Iterator[str]:
    """∂loss/∂e beside the nearest multiple of n (e − mean)."""
    s.plain()
    whole, part = s.stored()
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=True)
    yield f"k, wrong = {s.k(train=True)}, torch.autograd.grad({s.loss(train=True)}, {whole})[0]{part}"
    yield "right = torch.zeros_like(E).index_add_(0, k, E[k] - z)  # n (e − mean of its latents)"
    yield "right *= (wrong * right).sum() / right.square().sum()  # with the weight that fits best"
    yield from shown("∂loss/∂e holds", must="and the nearest multiple of n (e − mean)")
    yield "assert torch.dist(wrong, right) <= 1e-3 * wrong.norm()"


@script("update.synchronized")
def synchronized(s: Scene) -> Iterator[str]:
    """What codes and latents receive for a gradient at z_q."""
    s.plain()
    claim = s.subject.claims.get("synchronized")
    if claim is None or not isinstance(claim.value, int | float):
        raise Unscripted("the factor ν is not declared")
    whole, part = s.stored()
    g = "g" if s.case.g.any() else "torch.ones_like(z)"
    yield "z.requires_grad_()"
    yield from s.run(train=True)
    pulled = f"torch.autograd.grad({s.z_q(train=True)}, (z, {whole}), {g}, {ALL})"
    if s.label == "latents":
        yield f"wrong = {pulled}[0]"
        yield from compare("wrong", g, "a latent receives", tol=1e-3)
        return
    yield f"wrong = {pulled}[1]{part}"
    right = f"torch.zeros_like(wrong).index_add_(0, {s.k(train=True)}, {float(claim.value):g} * {g})"
    yield from compare("wrong", right, "a code receives", tol=1e-3)


@script("update.affine", stated=False, variants=3)
def affine(s: Scene) -> Iterator[str]:
    """The code of a latent beside the nearest one, or a latent in the table beside what it is in use."""
    if s.part not in {"nearest", "replaced"} or s.trait("affine_table") is None:
        raise Unscripted("no script is written for this part of the row")
    table, places = part_of(s.subject.module, s.trait("affine_table")), -(-max(64, s.subject.domain.min_n) // 4)
    many = s.part == "replaced"  # latents in few places, so that codes are left over
    rows = f"torch.randn(4, {s.dim}).repeat({places}, 1)" if many else f"torch.randn({4 * places}, {s.dim})"
    yield f"z = 1 + 2 * {rows}"
    old = f"E = {table}.detach().clone().reshape(-1, {s.dim})"
    made = s.made(s.x(n=4 * places), train=True)
    yield f"for _ in range({(1, 4, 24)[s.variant]}): {old}; out = {made}"
    yield f"k, q = {s.k(train=True)}, {s.z_q(train=True)}.detach()"
    yield "x, b = E[k] - E[k].mean(0), q.mean(0)"
    yield "s = (x * (q - b)).sum(0) / x.square().sum(0)  # q is s ⊙ E[k] + b, moved to the means"
    if not many:
        yield "codes = s * (E - E[k].mean(0)) + b"
        wrong, right = "(z - codes[k]).norm(dim=1)", "torch.cdist(z, codes).amin(1)"
        yield from compare(wrong, right, "the code of a latent is away by", must="and the nearest by")
        return
    yield f"new = torch.stack([row for row in {table}.detach().reshape(-1, {s.dim}) if (row == z).all(1).any()])[0]"
    yield from compare("s * (new - E[k].mean(0)) + b", "new", "a latent that became a code is in use as")
