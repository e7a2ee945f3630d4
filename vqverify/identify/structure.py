"""What kind of quantizer: plain, residual, grouped, one number at a time (scalar, sign); and its sizes.

Kinds that have no laws of their own yet are named, too: heads (slices of a projected latent), grouped residual
(stacks side by side), projected residual (each level with maps of its own into and out of code space), sum (levels
that do not wait for each other), learnt scalar (numbers from trained values).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqverify.identify.probes import Findings, Probe, Unknown, attempt, code_rows, relative, unknown_
from vqverify.identify.tables import additive, implicit, renumbered
from vqverify.quantizer import Finding, Quantized
from vqverify.subject.state import tensor_at

SWEEP = 2001  # points of a sweep through one coordinate
MANY = 1024  # a coordinate with more values than that is not quantised on its own


@attempt("dim", "codebook_size")
def sizes(probe: Probe) -> Findings:
    """D, and K of the stored codebook."""
    books = probe.layer.codebooks()
    found = {"dim": Finding(probe.layer.domain.dim, evidence="length of a latent that the layer takes")}
    sizes_ = {len(e) for e in books}
    if len(sizes_) == 1:
        found["codebook_size"] = Finding(sizes_.pop(), evidence=f"rows of the stored codebook, {len(books)} level(s)")
    else:
        found["codebook_size"] = unknown_(f"no codebook of one size is stored (sizes {sorted(sizes_)})")
        found |= {} if books else _used(probe)
    return found


def _used(probe: Probe) -> Findings:
    """How many codes many latents reach: at most as many as there are."""
    codes = probe.run(probe.latents(4 * MANY, seed=10), train=False).codes
    if codes is None:
        return {}
    return {"codes_used": Finding(int(codes.max()) + 1, evidence=f"the largest code of {len(codes)} latents, plus 1")}


@attempt("structure", "num_quantizers", "heads")
def structure(probe: Probe) -> Findings:
    """How the code columns make up z_q."""
    out = probe.train
    columns = 1 if out.codes is None else out.codes.shape[1]
    if columns == 1:
        if not probe.layer.codebooks() and (found := _scalar(probe)):
            return found
        if not probe.layer.codebooks():
            return implicit(probe)
        return _named("plain", 1, 1, "one code a latent, one codebook")
    if _chained(out):
        return _named("residual", columns, 1, f"{columns} code columns, each level searches what the last one left")
    if _separate(probe, columns):
        if not probe.layer.codebooks() and (found := _scalar(probe, columns)):
            return found
        return _named("grouped", 1, columns, f"{columns} code columns, each a function of its own slice of the latent")
    if _summed(out):
        return _named("residual", columns, 1, f"{columns} code columns, z_q is the sum of their codes")
    if heads(out):
        text = f"{columns} code columns, each searches its own slice of one projected latent"
        return _named("heads", 1, columns, f"{text}: z itself has no such slices")
    if length := _runs(out):
        text = f"{columns} code columns: {columns // length} stacks of {length} levels side by side"
        return _named("grouped residual", length, columns // length, text)
    if not probe.layer.codebooks():
        return implicit(probe)
    if additive(probe):
        if renumbered(probe):
            text = "z_q is a sum of rows of the stored codebooks, but not of those that the codes name"
            return _named("residual", columns, 1, f"{columns} code columns, {text}")
        text = f"{columns} code columns, z_q is a sum of a function of each"
        if _each_waits(probe, columns):
            return _named("projected residual", columns, 1, f"{text}, and each depends on the codes before it")
        return _named("sum", columns, 1, f"{text}, and some do not depend on the codes before them")
    raise Unknown(f"{columns} code columns that are neither a sum nor slices")


def _each_waits(probe: Probe, columns: int) -> bool:
    """Whether other codes of each level make the levels after it choose others."""
    first, layer = probe.evaluation.codes, probe.layer
    assert first is not None
    for level, slot in enumerate(layer.plan.slots[:-1]):
        layer.restore()
        tensor = slot.of(tensor_at(layer.module, slot.name).data)
        generator = torch.Generator().manual_seed(31 + level)
        tensor.copy_(tensor[torch.randperm(len(tensor), generator=generator)] * -1)
        codes = layer.forward(probe.z, grad=False).codes
        layer.restore()
        later = slice(level + 1, columns)
        if codes is None or not bool((codes[:, later] != first[:, later]).any(0).all()):
            return False
    return True


def _named(kind: str, quantizers: int, heads: int, evidence: str) -> Findings:
    return {
        "structure": Finding(kind, evidence=evidence),
        "num_quantizers": Finding(quantizers, evidence=evidence),
        "heads": Finding(heads, evidence=evidence),
    }


def heads(out: Quantized) -> bool:
    """Whether all levels search parts of one and the same tensor."""
    tensors = [level.z_c.tensor for level in out.levels if level.z_c is not None]
    return len(tensors) == len(out.levels) > 1 and all(tensor is tensors[0] for tensor in tensors)


def _links(out: Quantized) -> list[bool]:
    """For each level but the first, whether its z_c is z_c of the level before minus its code."""
    rows = [level.z_c.rows.detach() for level in out.levels if level.z_c is not None]
    if len(rows) != len(out.levels) or len({z.shape for z in rows}) > 1:
        return []
    codes = [code_rows(out, level, e) for level, e in enumerate(out.codebook)]
    return [relative(b - (a - q), a) < 0.05 for a, b, q in zip(rows, rows[1:], codes, strict=False)]


def _chained(out: Quantized) -> bool:
    links = _links(out)
    return bool(links) and all(links)


def _runs(out: Quantized) -> int | None:
    """Length of the chains of levels, where all are equally long."""
    links = _links(out)
    starts = [0, *(i + 1 for i, linked in enumerate(links) if not linked)]
    length = len(out.levels) // len(starts)
    equal = starts == list(range(0, len(out.levels), max(1, length)))
    return length if links and length > 1 and equal else None


def _summed(out: Quantized) -> bool:
    if not out.codebook or any(e.shape[1] != out.z.rows.shape[1] for e in out.codebook):
        return False
    assert out.codes is not None
    levels = range(out.codes.shape[1])
    books = out.codebook if len(out.codebook) > 1 else out.codebook * len(levels)
    total = torch.stack([code_rows(out, level, books[level]) for level in levels]).sum(0)
    return relative(out.z_q.rows.detach() - total, total) < 0.2


def _separate(probe: Probe, columns: int) -> bool:
    """Changing one slice of the latent changes its own code column only, whichever slice."""
    dim = probe.layer.domain.dim
    if dim % columns:
        return False
    first, other = probe.evaluation, probe.latents(probe.n, seed=6)
    assert first.codes is not None
    for column in range(columns):
        z = probe.z.clone()
        part = slice(column * dim // columns, (column + 1) * dim // columns)
        z[:, part] = other[:, part]
        codes = probe.run(z, train=False).codes
        assert codes is not None
        changed = (codes != first.codes).double().mean(0)
        if float(changed.sum() - changed[column]) > 0.02 or float(changed[column]) == 0:
            return False
    return True


def _scalar(probe: Probe, columns: int = 1) -> Findings | None:
    """z_q componentwise from a finite set: each coordinate swept, twice, with the others in another order.

    Several code columns must each name an equal run of coordinates.
    """
    dim = probe.layer.domain.dim
    sweep = torch.linspace(-0.99999, 0.99999, SWEEP, dtype=torch.float64).atanh()
    sweep = torch.cat([sweep, torch.linspace(-8, 8, SWEEP, dtype=torch.float64)]).to(probe.z)
    generator = torch.Generator().manual_seed(7)
    orders = torch.stack([torch.randperm(len(sweep), generator=generator) for _ in range(dim)], dim=1)
    together = probe.run(sweep[:, None].expand(-1, dim).contiguous(), train=False)
    shuffled = probe.run(sweep[orders], train=False)
    want = together.z_q.rows.detach().gather(0, orders)
    if relative(shuffled.z_q.rows.detach() - want, want) > 1e-3 or not bool(want.any()):
        return None
    values = [_distinct(together.z_q.rows.detach()[:, axis]) for axis in range(dim)]
    levels = [len(found) for found in values]
    if max(levels) > MANY or min(levels) < 2:
        return None
    evidence = f"each coordinate of z_q is a function of that coordinate alone, with {levels} values"
    levels, period = levels[: dim // columns], levels
    if period != levels * columns:
        return None
    if _learnt(probe, sweep, together.z_q.rows.detach()):
        return _of_learnt(probe, columns, f"{evidence}, which a parameter holds")
    signs = all(len(found) == 2 and abs(float(found.sum())) < 1e-5 * float(found.abs().max()) for found in values)
    metric = Finding("sign" if signs else "grid", evidence=evidence)
    return {
        **_named("sign" if signs else "scalar", 1, columns, evidence),
        "fsq_levels": Finding(levels, evidence=evidence),
        "codebook_size": Finding(math.prod(levels), evidence=f"product of {levels}"),
        "metric": metric,
        "metric_equivalent": Finding([metric.value], evidence=evidence),
        "learning": Finding(["none"], evidence="no stored codebook: the values are fixed"),
    }


def _of_learnt(probe: Probe, columns: int, evidence: str) -> Findings:
    """A number at a time, from values that are trained: no grid that is known."""
    try:
        found = implicit(probe)
    except Unknown:
        found = {}
    metric = {"metric": Finding("grid", evidence=evidence), "metric_equivalent": Finding(["grid"], evidence=evidence)}
    return found | _named("learnt scalar", 1, columns, evidence) | metric


def _learnt(probe: Probe, sweep: Tensor, before: Tensor) -> bool:
    """Whether a trainable parameter holds the values of the coordinates: then they form no grid that is fixed."""
    layer, generator = probe.layer, torch.Generator().manual_seed(9)
    layer.restore()
    with torch.no_grad():
        for parameter in layer.module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(0.02 * parameter.abs().max() * noise)
    after = layer.forward(sweep[:, None].expand(-1, before.shape[1]).contiguous(), grad=False).z_q.rows
    layer.restore()
    return all(
        len(ours) != len(theirs) or relative(ours - theirs, theirs) > 1e-4
        for ours, theirs in zip(map(_distinct, after.t()), map(_distinct, before.t()), strict=True)
    )


def _distinct(values: Tensor) -> Tensor:
    """The values up to rounding, in order."""
    ordered = values.double().sort().values
    gap = 1e-4 * float(ordered[-1] - ordered[0])
    return ordered[torch.cat([torch.ones(1, dtype=torch.bool), ordered.diff() > gap])]
