"""Affine reparametrization of a codebook: all codes move together (001 eq. 15, 38-45; theory T25, T26)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import Array, array, norms, roundoff, stream, tiny, trait
from vqverify.quantizer import Quantizer
from vqverify.subject.capture import pull
from vqverify.subject.guards import guarded

BATCHES = 4
PASSES = 24  # in which some code is replaced, unless a longer lifespan is claimed
LEAST = 1e-3  # of the largest variance: below it layers may clamp theirs


@dataclass
class Moments:
    """Moving mean and variance of what was seen, as theory T26 has them; the first batch sets them."""

    decay: float
    merged: bool = False
    mean: Array | None = None
    variance: Array = field(default_factory=lambda: np.zeros(0))

    def see(self, rows: Array) -> None:
        """One batch (N, D); merging two populations adds the variance between their means."""
        mean, variance = rows.mean(0), rows.var(0)
        if self.mean is None:
            self.mean, self.variance = mean, variance
            return
        between = self.decay * (1 - self.decay) * np.square(mean - self.mean) * self.merged
        self.variance = self.decay * self.variance + (1 - self.decay) * variance + between
        self.mean = self.decay * self.mean + (1 - self.decay) * mean


def _kinds(subject: Quantizer) -> tuple[str, ...]:
    """The map, what is put into the table that it maps, and the search where no codes are stored to see it by."""
    kind = str(trait(subject, "affine"))
    more = ["replaced"] if trait(subject, "replacement") == "batch" else []
    more += ["nearest"] if kind == "moments" and trait(subject, "metric", "euclidean") == "euclidean" else []
    return kind, *more


@invariant(
    "update.affine",
    mode="table",
    source="001 eq. 15, 38-45; theory T25, T26",
    needs=("affine=moments|learnable", "codes", "deterministic"),
    parts=_kinds,
    corners=("generic", "unit", "single"),
    follows=("honesty.traits[affine]",),
    mutants=(
        "affine_variance",
        "affine_means_swapped",
        "affine_rate_squared",
        "affine_replaced_raw",
        "affine_unsearched",
    ),
    hint="c = (σ_e/σ_x)(x − μ_x) + μ_e with deviations and not variances, μ_e of the latents and μ_x of the codes; "
    "what replaces a code goes through the inverse before it is stored.",
)
def affine(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Every code in use is s ⊙ x + b, one s and b for all: by moments that follow their averages, or learnt as T25 has it.

    A latent is given the nearest of these (T27), and one that replaces a code is in use as it is: stored where the
    map sends it to itself, not raw (T22).
    """
    checks = {"moments": _by_moments, "learnable": _learnt, "replaced": _replaced, "nearest": _nearest}
    yield from checks[str(case.part)](subject, case)


def _by_moments(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A new layer on batches whose mean and spread differ: after the first its codes have the batch's moments."""
    twin, name = subject.build(warm=False), str(trait(subject, "affine_table"))
    past = trait(subject, "affine_order") == "past"
    decay = trait(subject, "affine_decay")
    seen = Moments(float(decay or 0.0), trait(subject, "affine_variance") == "merged")
    table = Moments(float(trait(subject, "affine_table_decay", 0.0)))
    for number in range(BATCHES if decay is not None else 1 + past):
        z = _batch(subject, case, number)
        x = array(twin.state()[name].reshape(-1, z.shape[1]))
        table.see(x)
        if not past:
            seen.see(array(z))
        out = twin.forward(z, train=True, seed=case.seed + number, grad=False)
        if out.codes is not None and seen.mean is not None:
            rows = x[out.codes[:, 0].cpu().numpy()]
            yield _mapped(subject, array(out.z_q.rows), rows, seen, table, number + 1)
        if past:
            seen.see(array(z))


def _batch(subject: Quantizer, case: Case, number: int) -> Tensor:
    """Latents of the case's size, spread and shifted differently in each batch."""
    n = max(64, subject.domain.min_n)
    size = float(case.z.abs().max()) or 1.0
    generator = stream(100 * case.seed + number)
    z = size * (1 + number % 3) * torch.randn(n, subject.domain.dim, generator=generator) + size * (number % 2)
    return z.to(subject.domain.dtype)


def _mapped(subject: Quantizer, got: Array, rows: Array, seen: Moments, table: Moments, count: int) -> Clause:
    assert seen.mean is not None
    assert table.mean is not None
    clear = (table.variance > LEAST * table.variance.max()) & (seen.variance > LEAST * seen.variance.max())
    scale = np.sqrt(seen.variance / np.where(clear, table.variance, 1.0))
    want = scale * (rows - table.mean) + seen.mean
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    reach = np.abs(seen.mean) + np.sqrt(seen.variance) + scale * (np.abs(rows) + np.abs(table.mean))
    allowed = (64 + len(rows) + 10) * u * reach + tiny(subject)
    label = "first batch" if count == 1 else "moments"
    return within((got - want)[:, clear], allowed[:, clear], label, f"|c − (s ⊙ x + b)| in pass {count}")


def _replaced(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Rows of the table that became a latent, raw or through the map of the pass: in use, each is a latent of the batch.

    Rows that moved otherwise are no matter of this statement; a raw latent is one whatever the convention of the map.
    """
    name = str(trait(subject, "affine_table"))
    _turned(subject)
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    z = _batch(subject, case, 1)
    z = z[:4].repeat(-(-len(z) // 4), 1) + 2.0**-7 * z.std() * torch.randn(z.shape, generator=stream(case.seed)).to(z)
    for step in range(max(PASSES, int(trait(subject, "lifespan", 0)) + 2)):
        before = array(_rows(subject, name, z))
        out = subject.forward(z, train=True, seed=case.seed + step, grad=False)
        after, latents = array(_rows(subject, name, z)), array(z)
        if out.codes is None:
            return
        new = np.flatnonzero((after != before).any(1))
        raw = np.abs(after[new, None] - latents).max(-1).min(1) <= 4 * u * np.abs(latents).max()
        x, q = before[out.codes[:, 0].cpu().numpy()], array(out.z_q.rows)
        if not x.std(0).all():
            continue  # the map cannot be seen
        scale, shift, off = _fitted(x, q, u)
        put = scale * after[new] + shift
        allowed = off * (1 + np.abs(after[new] - x.mean(0)) / x.std(0))
        error = np.abs(put[:, None] - latents)
        near = (error <= allowed[:, None] + tiny(subject)).all(-1).any(1)
        if bool((raw | near).any()):
            chosen = error.max(-1).argmin(1)
            best = error[np.arange(len(new)), chosen]
            yield within(
                best[raw | near], allowed[raw | near] + tiny(subject), "replaced", "|s ⊙ x + b − z| of new rows x"
            )
            return


def _nearest(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """In two passes on batches that differ, by the codes that the map of the pass makes of the table."""
    name = str(trait(subject, "affine_table"))
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    for number in (0, 1):
        z = _batch(subject, case, number)
        before = array(_rows(subject, name, z))
        out = subject.forward(z, train=True, seed=case.seed + number, grad=False)
        if out.codes is None:
            return
        chosen, latents = out.codes[:, 0].cpu().numpy(), array(z)
        x, q = before[chosen], array(out.z_q.rows)
        if not x.std(0).all():
            continue
        scale, shift, off = _fitted(x, q, u)
        codes = scale * before + shift
        D = np.square(latents[:, None] - codes).sum(-1)
        reach = norms(latents) + norms(codes).max()
        slack = norms(off * (1 + np.abs(before - x.mean(0)) / x.std(0))).max()
        allowed = 4 * reach * ((latents.shape[1] + 8) * u * reach + slack) + tiny(subject)
        rest = D[np.arange(len(D)), chosen] - D.min(1)
        yield within(rest, allowed, "nearest", "|z − c|² beyond that of the nearest of the codes s ⊙ x + b")


def _turned(subject: Quantizer) -> None:
    """Move a learnt map away from the identity, where it begins."""
    parameters = dict(subject.module.named_parameters())
    with torch.no_grad():
        for part in ("scale", "bias"):
            parameter = parameters.get(str(trait(subject, f"affine_{part}")))
            if parameter is not None:
                parameter.add_(0.25)


def _rows(subject: Quantizer, name: str, z: Tensor) -> Tensor:
    return subject.state()[name].reshape(-1, z.shape[1])


def _fitted(x: Array, q: Array, u: float) -> tuple[Array, Array, Array]:
    """s and b of q = s ⊙ x + b (least squares), and how far rounding of q and x moves the fit at the mean of x."""
    centred = x - x.mean(0)
    scale = (centred * q).sum(0) / np.square(centred).sum(0)
    shift = q.mean(0) - scale * x.mean(0)
    return scale, shift, 16 * u * (np.abs(q).max(0) + np.abs(scale) * np.abs(x).max(0))


def _learnt(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """∂S = a ΣG ⊙ x and ∂b = a ΣG with one rate a, and every code is (1 + aS) ⊙ x + ab after a step of S and b."""
    keys = [str(trait(subject, f"affine_{part}")) for part in ("table", "scale", "bias")]
    parameters = dict(subject.module.named_parameters())
    if any(key not in parameters for key in keys):
        return
    z = _batch(subject, case, 0)
    out = subject.forward(z, train=True, seed=case.seed)
    if out.loss is None or not out.loss.requires_grad or out.codes is None:
        return
    with guarded("backward of the loss"):
        found = [pull(out.loss, parameters[key], torch.ones_like(out.loss)) for key in keys]
    if not found[0].any():
        return
    x = array(parameters[keys[0]].reshape(-1, z.shape[1]))
    G, dS, db = (array(g.reshape(-1, z.shape[1])) for g in found)
    dS, db, u = dS[0], db[0], max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    total, turned = G.sum(0), (G * x).sum(0)
    rate = float((db @ total) / max(total @ total, 1e-300))
    deep = (len(x) + len(z) + 8) * u * abs(rate)
    for name, got, want, size in (("∂b", db, total, np.abs(G).sum(0)), ("∂S", dS, turned, np.abs(G * x).sum(0))):
        yield within(got - rate * want, deep * 8 * size + tiny(subject), name, f"|{name} − a Σ …|, a = {rate:.4g}")
    yield from _moved(subject, case, keys, x, rate)


def _moved(subject: Quantizer, case: Case, keys: list[str], x: Array, rate: float) -> Iterator[Clause]:
    """Latents at the places where the codes have to be find them there: used before or not."""
    parameters = dict(subject.module.named_parameters())
    step = [0.25 * torch.linspace(1, 2, parameters[key].numel()).reshape(parameters[key].shape) for key in keys[1:]]
    with torch.no_grad():
        for key, move in zip(keys[1:], step, strict=True):
            parameters[key].add_(move.to(parameters[key]))
    S, b = (array(move.reshape(-1)) for move in step)
    want = (1 + rate * S) * x + rate * b
    z = torch.from_numpy(want).to(subject.domain.dtype)
    z = z.repeat(-(-subject.domain.min_n // len(z)), 1)
    out = subject.forward(z, train=False, seed=case.seed)
    error = norms(array(out.z_q.rows) - array(z))
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    allowed = (len(x) + x.shape[1] + 16) * u * (norms(array(z)) + norms(x).max() * (1 + abs(rate) * np.abs(S).max()))
    yield within(error, 8 * allowed + tiny(subject), "all codes move", "|c − ((1 + aS) ⊙ x + ab)| over all codes")
