"""Which estimator: measured gradients against the families of `vqverify.subject.families`, in code space.

Each level is fitted on its own; where latents and codes share one space and there is one level, z to z_q is fitted
too, which sees what happens around the level; so is a stack whose levels carry no gradient. A family counts when it
explains the gradients to 0.1%: single precision leaves 1e-6 on generic points, another family 1e-1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vqverify.identify import relaxed, task, unusual
from vqverify.identify.probes import Findings, Probe, Unknown, attempt, code_rows, latents_at, relative, unknown_
from vqverify.identify.unusual import EXPLAINS
from vqverify.quantizer import Finding
from vqverify.subject.bare import BareEstimator
from vqverify.subject.families import Fit, fits

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from vqverify.quantizer import Place, Quantized

OTHERS = (
    unusual.on_a_line, unusual.noise, relaxed.softmax, unusual.elementwise, unusual.fixed_linear, unusual.behind_norm,
)  # fmt: skip
ROWS = 97  # latents of a fit: families differ on nearly every row
COARSE = 0.2  # z_q is a sum of codes, up to what a mistake in the value may do


@dataclass(frozen=True)
class Gradients:
    """Jᵀg measured between two places of a pass, with latents, codes e[k] (if readable) and values there."""

    out: Quantized
    src: Place
    dst: Place
    z: Tensor
    code: Tensor | None
    value: Tensor
    g: Tensor
    got: Tensor

    around: bool = False  # from z to z_q of a stack, against the sum of its codes

    @property
    def where(self) -> str:
        """For the evidence."""
        if self.around:
            return "around the stack, z to z_q"
        return "z to z_q" if self.src == "z_q" else f"level {self.src[1]}"

    @property
    def tensor(self) -> Tensor:
        """Where the gradient starts."""
        return self.out.z_q.tensor if isinstance(self.src, str) else self.out.levels[self.src[1]].q_c.tensor


def cotangents(like: Tensor) -> Tensor:
    """Random g of a shape, the same in every run."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(3000), dtype=torch.float64).to(like)


def _at_level(probe: Probe, out: Quantized, level: int) -> Gradients:
    src: Place = ("q_c", level)
    dst: Place = ("z_c", level)
    z, value = latents_at(out, level), out.levels[level].q_c.rows
    g = cotangents(value)
    code = code_rows(out, level, out.codebook[level])
    return Gradients(out, src, dst, z, code, value.detach(), g, probe.layer.vjp(out, g, src, dst))


def _through(probe: Probe, out: Quantized) -> Gradients:
    """From z to z_q, with the code where latents and codes share a space."""
    z, value = out.z.rows.detach(), out.z_q.rows
    g, book = cotangents(value), out.codebook
    known = out.codes is not None and out.codes.shape[1] == 1 and len(book) == 1 and book[0].shape[1] == z.shape[1]
    code = code_rows(out, 0, book[0]) if known else None
    return Gradients(out, "z_q", "z", z, code, value.detach(), g, probe.layer.vjp(out, g))


def _around(through: Gradients) -> Gradients:
    """The same gradients against the sum of the codes: one estimator around a stack (T34)."""
    out = through.out
    if out.codes is None or not out.codebook or any(e.shape[1] != through.z.shape[1] for e in out.codebook):
        return through
    total = torch.stack([code_rows(out, level, e) for level, e in enumerate(out.codebook)]).sum(0)
    near = total.shape == through.value.shape and relative(through.value - total, total) < COARSE
    return replace(through, code=total.to(through.value), around=True) if near else through


def _carries(probe: Probe, out: Quantized, level: int) -> bool:
    """Whether any gradient reaches the latent of a level from its code."""
    if out.levels[level].z_c is None:
        return False
    rows = out.levels[level].q_c.rows
    return bool(probe.layer.vjp(out, cotangents(rows), ("q_c", level), ("z_c", level)).any())


def _fits(m: Gradients, q: Tensor) -> list[Fit]:
    return fits(m.z[:ROWS], q[:ROWS], m.g[:ROWS], m.got[:ROWS])


def _fit(m: Gradients) -> Fit | None:
    """The family that explains the gradients, with the code as the codebook has it, or as it came out."""
    tolerance = EXPLAINS * max(1.0, torch.finfo(m.got.dtype).eps * 1e4)
    best = [found[0] for q in (m.code, m.value) if q is not None and (found := _fits(m, q))]
    explained = [fit for fit in best if fit.residual < tolerance]
    if explained and m.code is not None and best[0] is explained[0] and not constant_norm(m.z):
        return explained[0]  # a value without its scale would excuse a gradient without it
    return min(explained, key=lambda fit: (fit.gain != 1.0, fit.family.mistake is not None), default=None)


def constant_norm(z: Tensor) -> bool:
    """Whether latents lie on a sphere: then codes may be normalised in the pass, and stored otherwise."""
    norms = z.double().norm(dim=1)
    return bool((norms - norms.mean()).abs().max() < 1e-3 * norms.mean())


def _verdict(m: Gradients, probe: Probe, *, train: bool) -> Finding:
    if not bool(m.got.isfinite().all()):
        return unknown_(f"{m.where}: the gradient is not finite")
    if not bool(m.got.any()):
        return Finding("none", evidence=f"{m.where}: the gradient is exactly 0")
    if fit := _fit(m):
        gain = "" if abs(fit.gain - 1) < EXPLAINS else f"gain {fit.gain:.4g}"
        mistake = ", ".join(filter(None, (fit.family.mistake, gain))) or None
        text = f"{m.where}: Jᵀg of {len(m.z[:ROWS])} generic latents, residual {fit.residual:.1e}"
        return Finding(fit.family.name, evidence=text, mistake=mistake)
    for other in OTHERS:
        if finding := other(m, probe, train):
            return finding
    nearest = _fits(m, m.value)[:1]
    text = "".join(f"; nearest is {fit.family.name}, residual {fit.residual:.2g}" for fit in nearest)
    if m.code is None:
        return unknown_(f"{m.where}: code space was not located{text}")
    return Finding("other", evidence=f"{m.where}: no family explains the gradients{text}")


def _agreed(verdicts: list[Finding]) -> Finding:
    if len({(v.value, v.mistake) for v in verdicts}) == 1:
        count = f" (the same on all {len(verdicts)} levels)" if len(verdicts) > 1 else ""
        return replace(verdicts[0], evidence=verdicts[0].evidence + count)
    if len({v.value for v in verdicts}) == 1:  # a mistake on one level only is a mistake
        return next(v for v in verdicts if v.mistake is not None)
    said = ", ".join(f"{level}: {v.value or 'unknown'}" for level, v in enumerate(verdicts))
    return Finding("other", evidence=f"the levels differ: {said}")


def _whole(inner: Finding, outer: Finding) -> Finding:
    """A level's verdict with what z to z_q adds: a gain behind it, or a path around it."""
    if inner.value in {None, "none", "other"}:
        return outer if outer.value not in {None, "other"} else inner
    if outer.value == inner.value and outer.mistake and not inner.mistake:
        return replace(outer, evidence=f"{outer.evidence}; the level itself has no mistake")
    return inner


def _synchronized(finding: Finding, probe: Probe) -> Finding:
    """Straight-through that sends ν Σ g to the codes as well (T23)."""
    out = probe.train
    if finding.value != "straight-through" or finding.mistake or not out.codebook or out.codes is None:
        return finding
    g = cotangents(out.z_q.rows)
    if out.codes.shape[1] != 1 or out.codebook[0].shape[1] != g.shape[1]:
        return finding
    got = probe.layer.codebook_gradients((out.z_q.rows * g).sum())[0].double()
    want = torch.zeros_like(got).index_add_(0, out.codes[:, 0].clamp_min(0), g.double())
    nu = float((got * want).sum() / want.square().sum())
    if not bool(got.any()) or relative(got - nu * want, got) > EXPLAINS:
        return finding
    return Finding("synchronized", evidence=f"{finding.evidence}; the codes receive {nu:.4g} Σ g")


def _direct(out: Quantized) -> bool:
    """Whether the level searches z as it is: where z is normalised first, its family is not that of z to z_q."""
    z_c, z = out.levels[0].z_c, out.z.rows.detach()
    return z_c is not None and z_c.rows.shape == z.shape and relative(z_c.rows.detach() - z, z) < EXPLAINS


def _identify(probe: Probe, *, train: bool) -> Finding:
    out = probe.train if train else probe.evaluation
    mode = "train" if train else "eval"
    if not out.z_q.tensor.requires_grad:
        return Finding("none", evidence=f"z_q of a {mode} pass is detached from z")
    through = _through(probe, out)
    if not bool(through.got.any()):
        return Finding("none", evidence=f"z to z_q of a {mode} pass: the gradient is exactly 0")
    stack = out.codes is not None and out.codes.shape[1] > 1
    outer = _verdict(_around(through) if stack else through, probe, train=train)
    if not out.levels:
        if stack and outer.value is None:
            raise Unknown("code space of the levels was not located")
        return outer
    levels = [level for level in range(len(out.levels)) if not stack or _carries(probe, out, level)]
    if not levels:
        return outer
    inner = _agreed([_verdict(_at_level(probe, out, level), probe, train=train) for level in levels])
    if stack:  # levels that tell nothing, or not all: the estimator may stand in the sum
        told = len(levels) == len(out.levels) and inner.value not in {None, "other"}
        return inner if told or outer.value in {None, "other"} else outer
    return _whole(inner, outer) if through.code is not None and _direct(out) else inner


def _named(name: str, *, train: bool) -> Callable[[Probe], Findings]:
    @attempt(name)
    def identifier(probe: Probe) -> Findings:
        module = probe.layer.module
        if train and isinstance(module, BareEstimator) and module.of_task:
            return {name: task.identify(probe)}
        found = _identify(probe, train=train)
        return {name: _synchronized(found, probe) if train else found}

    return identifier


estimator = _named("estimator", train=True)
estimator_in_eval = _named("estimator_in_eval", train=False)
