"""The loss as what its gradient does: coefficients on |z − sg q|² and |sg z − q|², reduction, convention, β.

The value cannot tell a commitment from a codebook term (T16): only gradients are fitted. A swapped stop-gradient
comes out as what it is, a missing commitment gradient beside a codebook gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqverify.identify.learning import takes_gradient
from vqverify.identify.probes import Findings, Probe, Unknown, attempt, dormant, latents_at, relative
from vqverify.identify.structure import heads
from vqverify.quantizer import Finding, Quantized
from vqverify.subject.capture import pull

if TYPE_CHECKING:
    from vqverify.subject.layer import Layer

FITS, OTHER = 1e-2, 1e-3
GROUPS = "z, over the groups"
COMMITMENT_NAMES = ("commitment_weight", "commitment_cost", "commitment_loss_weight", "commit_weight")
REDUCTIONS = ("mean", "token-mean", "sum", "batch-mean")


@dataclass(frozen=True)
class Coefficients:
    """d loss/dz = 2 a (z − q) and d loss/de = 2 b Σ(e − z), as measured at N latents.

    `codebook` is None where the codebook takes no gradient.
    """

    n: int
    dim: int
    commitment: float
    codebook: float | None
    residual: float
    where: str


@dataclass(frozen=True)
class Side:
    """A place where the loss may be measured: its gradient there, beside z − q, (N, D) each."""

    where: str
    got: Tensor
    away: Tensor


def _sides(layer: Layer, out: Quantized, at_z: Tensor) -> list[Side]:
    """The last level (whatever is around it), z itself, z against all levels of a stack, and z behind a normalisation."""
    stacks = [Side(where, at_z, away) for where, away in _stacks(out)]
    sides = [side for side in stacks if side.where == GROUPS]
    assert out.loss is not None
    if out.levels and (last := out.levels[-1].z_c):
        got = last.to_rows(pull(out.loss, last.tensor, torch.ones_like(out.loss)))
        sides.append(Side(f"level {len(out.levels) - 1}", got, last.rows.detach() - code_rows(out, -1)))
    if len(out.levels) < 2:
        sides.append(Side("z and z_q", at_z, (out.z.rows - out.z_q.rows).detach()))
    sides += [side for side in stacks if side.where != GROUPS]
    if _normalised(layer) and len(out.codebook) == 1 and out.codebook[0].shape[1] == at_z.shape[1]:
        z, q = out.z.rows.detach(), code_rows(out, 0)
        size = z.norm(dim=1, keepdim=True)
        gap, unit = z / size - q, z / size
        back = (gap - unit * (gap * unit).sum(1, keepdim=True)) / size
        sides.append(Side("z, normalised", at_z, back))
    return sides


def _normalised(layer: Layer) -> bool:
    """Whether the codes are the stored rows at norm 1."""
    return bool(layer.plan.slots) and all(slot.transform == "normalize" for slot in layer.plan.slots)


def _stacks(out: Quantized) -> list[tuple[str, Tensor]]:
    """Σ (z_l − q_l) over the levels of a residual stack, and (z_l − q_l) side by side over groups."""
    if out.codes is None or len(out.codebook) < 2 or out.codes.shape[1] != len(out.codebook):
        return []
    z = out.z.rows.detach().double()
    codes = [code_rows(out, level).double() for level in range(len(out.codebook))]
    if all(q.shape == z.shape for q in codes):
        rests = z[None] - torch.stack(codes).cumsum(0)
        return [("z, over the levels", rests.sum(0))]
    beside = torch.cat(codes, 1)
    return [(GROUPS, z - beside)] if beside.shape == z.shape else []


def _side_by_side(out: Quantized) -> bool:
    """Whether the codes of all levels have, together, the length of a latent."""
    return len(out.codebook) > 1 and sum(e.shape[1] for e in out.codebook) == out.z.rows.shape[1]


def code_rows(out: Quantized, level: int) -> Tensor:
    """The code e[k] of each latent at one level, (N, Dc)."""
    assert out.codes is not None
    return out.codebook[level][_column(out, level)]


def _column(out: Quantized, level: int) -> Tensor:
    assert out.codes is not None
    return out.codes[:, level].clamp_min(0)


def _measure(probe: Probe, n: int, groups: int = 1) -> Coefficients:
    out = _pass(probe, probe.layer, n, groups)
    assert out.loss is not None
    if not out.loss.requires_grad:
        return Coefficients(n, 1, 0.0, None, 0.0, "no gradient leaves the loss")
    at_z = _at_z(out)
    best = _best(out, n, _sides(probe.layer, out, at_z), moves=bool(at_z.any()))
    _one_weight(probe.layer, out, at_z)
    return _with_codebook(probe, out, best)


def _one_weight(layer: Layer, out: Quantized, at_z: Tensor) -> None:
    """Look for levels that weigh their losses differently; a level without any weight is a mistake, and judged.

    Raises:
        Unknown: if d loss/dz is a sum over the levels with other weights.
    """
    if len(out.levels) < 2 or out.codes is None or any(level.z_c is None for level in out.levels):
        return
    columns: list[Tensor] = []
    for index, level in enumerate(out.levels):
        assert level.z_c is not None
        gap = level.z_c.rows.detach() - code_rows(out, index)
        columns.append(layer.vjp(out, gap, ("z_c", index), "z").double().flatten())
    basis, got = torch.stack(columns, 1), at_z.double().flatten()[:, None]
    if not bool(got.any()) or float(columns[0].norm()) == 0:
        return
    weights = torch.linalg.lstsq(basis, got, driver="gelsd").solution
    fits = relative(got - basis @ weights, got) <= OTHER
    least, most = float(weights.abs().min()), float(weights.abs().max())
    if fits and OTHER * most < least < (1 - 2 * FITS) * most:
        said = ", ".join(f"{weight / most:.3g}" for weight in weights[:, 0].tolist())
        raise Unknown(f"the levels weigh their losses differently, as {said}: no statement has weights a level")


def _pass(probe: Probe, layer: Layer, n: int, groups: int = 1) -> Quantized:
    """A training pass that returns a loss.

    Raises:
        Unknown: if it returns none.
    """
    layer.restore()
    out = layer.forward(probe.latents(n, seed=9), train=True, seed=probe.seed, trace=True, groups=groups)
    if out.loss is None:
        raise Unknown("the layer returns no loss")
    return out


def _best(out: Quantized, n: int, sides: list[Side], *, moves: bool) -> Coefficients:
    """The first place at which the gradient is a multiple of z − q.

    Raises:
        Unknown: if there is none.
    """
    found = [_fitted(n, side) for side in sides]
    # a level may be located on another branch of the graph than the loss: 0 there is no 0 at z
    moving = [c for c in found if c.commitment] if moves else found
    best = next((c for c in moving if c.residual <= FITS), None)
    if best is None:
        off = f" (residual {min(c.residual for c in moving):.2g})" if moving else ""
        raise Unknown(
            f"d loss/dz is no multiple of z − q{off}: the loss holds other terms, or its levels were not found"
        )
    if best.where != GROUPS and (heads(out) or _side_by_side(out)):  # a mean over all heads
        return replace(best, dim=best.dim * len(out.levels))
    return best


def _alone(probe: Probe, reason: str) -> Findings:
    """The commitment weight among other terms: the loss of a layer that is built with more of it, less the loss.

    Args:
        probe: the layer.
        reason: why its loss as a whole tells nothing.

    Raises:
        Unknown: if the layer has no such argument, or what it multiplies is no commitment.
    """
    given = {name: value for name, value in probe.layer.arguments.items() if name in COMMITMENT_NAMES}
    name = next((name for name, value in given.items() if isinstance(value, float | int) and value >= 0), "")
    if not name:
        raise Unknown(reason)
    value, step = given[name], given[name] or 1.0
    twin = probe.layer.build({name: value + step})
    one, two = (_difference(probe, twin, n, reason) for n in (48, 96))
    ratio = two.commitment / one.commitment if one.commitment else 0.0
    if min(abs(ratio - 0.5), abs(ratio - 1)) > 0.02:
        raise Unknown(f"{reason}; from 48 to 96 latents what {name} adds changes by the factor {ratio:.3g}")
    options = {"mean": one.n * one.dim, "token-mean": one.n} if ratio < 0.75 else {"sum": 1}
    weights = {reduction: _times(one, factor) for reduction, factor in options.items()}
    gain = weights[_plausible(weights)][0]
    text = f"with {name}={value + step:g}, d loss/dz gains 2·{gain:.4g}·(z − q), residual {one.residual:.1e}"
    found = {trait: Finding(None, evidence=reason) for trait in NAMES}
    return found | {"commitment_weight": Finding(_tidy(gain * value / step), evidence=text)}


def _difference(probe: Probe, twin: Layer, n: int, reason: str) -> Coefficients:
    once, twice = _pass(probe, probe.layer, n), _pass(probe, twin, n)
    if once.codes is not None and twice.codes is not None and not torch.equal(once.codes, twice.codes):
        raise Unknown(reason)
    before = _sides(probe.layer, once, _at_z(once))
    after = _sides(twin, twice, _at_z(twice))
    sides = [replace(b, got=b.got - a.got) for a, b in zip(before, after, strict=False) if a.where == b.where]
    return _best(once, n, sides, moves=True)


def _at_z(out: Quantized) -> Tensor:
    assert out.loss is not None
    return pull(out.loss, out.z.tensor, torch.ones_like(out.loss))


def _fitted(n: int, side: Side) -> Coefficients:
    got, away = side.got.double(), side.away.double()
    a = float((got * away).sum() / away.square().sum().clamp_min(1e-300)) / 2
    residual = relative(got - 2 * a * away, got) if bool(got.any()) else 0.0
    return Coefficients(n, away.shape[1], a, None, residual, side.where)


def _with_codebook(probe: Probe, out: Quantized, found: Coefficients) -> Coefficients:
    if not takes_gradient(probe) or out.codes is None:
        return found
    assert out.loss is not None
    got = probe.layer.codebook_gradients(out.loss)[-1].double()
    if not bool(got.any()):
        return replace(found, codebook=0.0)
    e, codes = out.codebook[-1], _column(out, -1)
    z = latents_at(out, len(out.codebook) - 1)
    z = z / z.norm(dim=1, keepdim=True) if _normalised(probe.layer) else z
    want = torch.zeros(e.shape, dtype=torch.float64).index_add_(0, codes, (e[codes] - z).double())
    want = probe.layer.stored_gradient(len(out.codebook) - 1, want)
    b = float((got * want).sum() / want.square().sum().clamp_min(1e-300)) / 2
    residual = relative(got - 2 * b * want, got)
    if residual > FITS:
        raise Unknown(f"d loss/de is no multiple of Σ(e − z) (residual {residual:.2g}): the loss holds other terms")
    return replace(found, codebook=b, residual=max(residual, found.residual))


NAMES = ("commitment_weight", "codebook_weight", "reduction", "loss_convention", "beta", "loss_coefficients")


@attempt(*NAMES)
def loss(probe: Probe) -> Findings:
    """Weights, reduction and convention, from gradients at two numbers of latents and two batch shapes."""
    try:
        one, two = _measure(probe, 48), _measure(probe, 96)
        _no_more(probe)
    except Unknown as unknown:
        return _alone(probe, str(unknown))
    if not _size(one):
        text = one.where if one.where.startswith("no") else "the loss sends no gradient to z or the codebook"
        values = (0.0, 0.0, None, "none", None, dict.fromkeys(REDUCTIONS, (0.0, one.codebook)))
        return _findings(values, text)
    ratio = _size(two) / _size(one)
    shrinks = abs(ratio - 0.5) < 0.02
    if not shrinks and abs(ratio - 1) > 0.02:
        raise Unknown(f"from 48 to 96 latents the gradient changes by the factor {ratio:.3g}: neither mean nor sum")
    options = {"mean": one.n * one.dim, "token-mean": one.n} if shrinks else {"sum": 1}
    if not shrinks and _by_batch(probe, one):
        options = {"batch-mean": 1}
    weights = {name: _times(one, factor) for name, factor in options.items()}
    reduction = _plausible(weights)
    commitment, codebook = weights[reduction]
    convention, beta = _convention(commitment, codebook)
    text = f"d loss/dz = 2·{commitment:.4g}·(z − q)"
    text += f" and d loss/de = 2·{codebook:.4g}·Σ(e − z)" if codebook is not None else ""
    text += f", times the factor of a {reduction}, at {one.where}, residual {one.residual:.1e}"
    return _findings((commitment, codebook, reduction, convention, beta, weights), text) | _inner(probe)


def _no_more(probe: Probe) -> None:
    """Look for other terms, too weak to show in `FITS`: latents that are codes get no gradient from either of the two.

    Raises:
        Unknown: if there is one, such as an entropy of the distances.
    """
    layer = probe.layer
    books = layer.codebooks()
    plain = all(slot.transform == "identity" for slot in layer.plan.slots) and layer.domain.codebook == "free"
    if not plain or len(books) != 1 or books[0].shape[1] != layer.domain.dim:
        return
    size = float(books[0].double().square().mean().sqrt()) or 1.0
    for scale in (1.0, 1 / size):
        book = scale * books[0]
        some = book[torch.arange(max(len(book), layer.domain.min_n)) % max(1, len(book) // 2)]
        noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(17)).to(some) * scale * size
        first, second = (_own(probe, [book], z) for z in (some, some + noise))
        value, latents = first.z_q.rows.detach(), first.z.rows.detach()
        if float((value - latents).norm()) > OTHER * float(latents.norm()):
            return  # codes are no fixed points of this layer
        on, beside = _at_z(first), _at_z(second)
        if float(on.norm()) > OTHER * float(beside.norm()):
            share = float(on.norm() / beside.norm())
            raise Unknown(
                f"latents that are codes get a gradient from the loss ({share:.2g} of others'): it holds other terms"
            )


def _own(probe: Probe, books: list[Tensor], z: Tensor) -> Quantized:
    probe.layer.restore()
    probe.layer.set_codebook(books)
    out = probe.layer.forward(z.to(probe.layer.domain.dtype), train=True, seed=probe.seed)
    if out.loss is None or not out.loss.requires_grad:
        raise Unknown("the loss of codes gives nothing a gradient")
    return out


def _inner(probe: Probe) -> Findings:
    """A second commitment argument: then one weight may be the commitment's, and the other the whole loss's."""
    for name, value in probe.layer.arguments.items():
        known = name.lower() in COMMITMENT_NAMES or isinstance(value, bool) or not isinstance(value, int | float)
        if "commit" in name.lower() and not known:
            return {"inner_commitment_weight": Finding(float(value), evidence=f"argument {name}={value!r}")}
    return {}


def _findings(values: tuple[Any, ...], text: str) -> Findings:
    found = {name: Finding(value, evidence=text) for name, value in zip(NAMES, values, strict=True)}
    if values[1] is None:
        found["codebook_weight"] = dormant("the codebook takes no gradient")
    return found


def _size(found: Coefficients) -> float:
    return abs(found.commitment) + abs(found.codebook or 0.0)


def _times(found: Coefficients, factor: float) -> tuple[float, float | None]:
    codebook = None if found.codebook is None else _tidy(found.codebook * factor)
    return _tidy(found.commitment * factor), codebook


def _by_batch(probe: Probe, one: Coefficients) -> bool:
    """Whether the same latents in two batch entries halve the gradient."""
    if "B" not in probe.layer.plan.calls[0].layout:
        return False
    return abs(_size(_measure(probe, one.n, groups=2)) / _size(one) - 0.5) < 0.02


def _tidy(value: float) -> float:
    """The value without the noise of single precision."""
    return float(f"{value:.4g}")


def _round(value: float) -> bool:
    return float(f"{value:.2g}") == value or value in {0.125, 0.375}


def _plausible(weights: dict[str, tuple[float, float | None]]) -> str:
    """Among reductions that differ by the factor D only, the one with round weights; a mean over elements if both."""
    for name, pair in weights.items():
        if all(_round(abs(value or 0.0)) and abs(value or 0.0) <= 4 for value in pair):
            return name
    return next(iter(weights))


def _convention(commitment: float, codebook: float | None) -> tuple[str, float | None]:
    if not codebook:
        return "commitment", commitment
    if not commitment:
        return "codebook", 0.0
    if abs(codebook - 1) < 0.01:
        return "V_b", commitment
    if abs(commitment - 1) < 0.01:
        return "legacy", codebook
    if abs(commitment + codebook - 0.5) < 0.005:
        return "A_beta", _tidy(codebook / (commitment + codebook))
    return "V_b", _tidy(commitment / codebook)
