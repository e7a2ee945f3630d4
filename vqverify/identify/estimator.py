"""Which estimator: measured gradients against the families of `vqverify.families`, in code space.

Each level is fitted on its own; where code space was not located, z to z_q is fitted. A family counts when it
explains the gradients to 0.1% (single precision leaves 1e-6 on generic points, another family 1e-1).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqverify.families import Fit, fits
from vqverify.identify.probes import Findings, Probe, Unknown, attempt, latents_at, relative, unknown_
from vqverify.quantizer import Finding, Place, Quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

EXPLAINS = 1e-3


@dataclass(frozen=True)
class Gradients:
    """Jᵀg measured between two places of a pass, with the latents and codes there."""

    out: Quantized
    z: Tensor
    q: Tensor
    g: Tensor
    got: Tensor
    src: Place
    dst: Place

    @property
    def where(self) -> str:
        """For the evidence."""
        return "z to z_q" if self.src == "z_q" else f"level {self.src[1]}"


def _cotangents(like: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(3000 + seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _measure(probe: Probe, out: Quantized) -> list[Gradients]:
    places: list[tuple[Place, Place]] = [(("q_c", i), ("z_c", i)) for i in range(len(out.levels))]
    measured: list[Gradients] = []
    for src, dst in places or [("z_q", "z")]:
        if isinstance(src, tuple):
            z, q = latents_at(out, src[1]), out.levels[src[1]].q_c.rows
        else:
            z, q = out.z.rows, out.z_q.rows
        g = _cotangents(q)
        measured.append(
            Gradients(out, z.detach(), q.detach(), g, probe.layer.vjp(out, g, src, dst), src, dst)
        )
    return measured


def _fit(m: Gradients) -> Fit | None:
    """The family that explains the gradients, with the code as the codebook has it or as it came out."""
    codes = [m.q]
    if isinstance(m.src, tuple) and m.out.codes is not None:
        codes.insert(0, m.out.codebook[m.src[1]][m.out.codes[:, m.src[1]].clamp_min(0)])
    best = [found[0] for q in codes if (found := fits(m.z, q, m.g, m.got))]
    explained = [fit for fit in best if fit.residual < EXPLAINS * max(1.0, _coarseness(m))]
    return min(explained, key=lambda fit: (fit.gain != 1.0, fit.family.mistake is not None), default=None)


def _coarseness(m: Gradients) -> float:
    return torch.finfo(m.got.dtype).eps / torch.finfo(torch.float32).eps / 1e3


def _verdict(m: Gradients, probe: Probe, *, train: bool) -> Finding:
    if not bool(m.got.any()):
        return Finding("none", evidence=f"{m.where}: the gradient is exactly 0")
    if not bool(m.got.isfinite().all()):
        return unknown_(f"{m.where}: the gradient is not finite")
    if fit := _fit(m):
        gain = "" if abs(fit.gain - 1) < EXPLAINS else f"gain {fit.gain:.4g}"
        mistake = ", ".join(filter(None, (fit.family.mistake, gain))) or None
        text = f"{m.where}: Jᵀg of {len(m.z)} generic latents, residual {fit.residual:.1e}"
        return Finding(fit.family.name, evidence=text, mistake=mistake)
    for other in (_noise, _softmax, _elementwise, _fixed_linear):
        if finding := other(m, probe, train):
            return finding
    nearest = fits(m.z, m.q, m.g, m.got)
    text = (
        f"{m.where}: nearest {nearest[0].family.name}, residual {nearest[0].residual:.2g}"
        if nearest
        else "nothing to fit"
    )
    if m.src == "z_q" and m.out.codes is not None and (m.out.codebook or m.out.codes.shape[1] > 1):
        return unknown_(f"code space was not located; {text}")
    return Finding("other", evidence=text)


def _noise(m: Gradients, _probe: Probe, _train: bool) -> Finding | None:
    """Z + |q − z| w with a random unit w held constant (NSVQ, DiVeQ): Jᵀg = g + (w·g)(z − q)/|z − q|."""
    if not (isinstance(m.src, tuple) and m.out.codes is not None):
        return None
    code = m.out.codebook[m.src[1]][m.out.codes[:, m.src[1]].clamp_min(0)]
    z, q, g = (x.double() for x in (m.z, code, m.g))
    step, back = m.q.double() - z, z - q
    size = back.norm(dim=1, keepdim=True).clamp_min(1e-30)
    along = (step * g).sum(1, keepdim=True) / step.norm(dim=1, keepdim=True).clamp_min(1e-30)
    residual = relative(m.got.double() - g - along * back / size, m.got)
    if residual > EXPLAINS or relative(m.q - code, code) < 1e-4:
        return None
    return Finding(
        "noise", evidence=f"{m.where}: z + |q − z| w with w constant explains Jᵀg, residual {residual:.1e}"
    )


def _softmax(m: Gradients, probe: Probe, train: bool) -> Finding | None:
    """Every gradient runs through a softmax over the codes."""
    source = _node_of(m)
    layers = list(softmaxes(source.grad_fn))
    if not layers or not bool(m.got.any()):
        return None
    with _silenced(layers):
        rest = probe.layer.vjp(m.out, m.g, m.src, m.dst)
    if bool(rest.any()):
        return None
    weights = layers[0]._saved_result.detach()
    again = list(softmaxes(_node_of_pass(probe.run(probe.z, train=train, seed=1, trace=True), m.src).grad_fn))
    other = again[0]._saved_result.detach() if again else weights
    noisy = other.shape == weights.shape and not torch.allclose(other, weights, rtol=1e-4, atol=1e-6)
    text = f"{m.where}: every gradient runs through a softmax over {weights.shape[-1]} codes, "
    if noisy:
        return Finding("gumbel", evidence=text + "whose weights differ between seeds")
    return Finding("softmax", evidence=text + "whose weights do not depend on the seed")


def _node_of(m: Gradients) -> Tensor:
    return _node_of_pass(m.out, m.src)


def _node_of_pass(out: Quantized, src: Place) -> Tensor:
    return out.levels[src[1]].q_c.tensor if isinstance(src, tuple) and out.levels else out.z_q.tensor


def softmaxes(root: Any) -> Iterator[Any]:
    """The softmax operations in the graph behind a tensor, last first."""
    seen: set[Any] = set()
    queue = [root]
    while queue:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("SoftmaxBackward") and node._saved_result.shape[-1] > 1:
            yield node
        queue.extend(parent for parent, _ in node.next_functions)


@contextmanager
def _silenced(nodes: list[Any]) -> Generator[None]:
    handles = [
        node.register_prehook(lambda grads: tuple(None if g is None else torch.zeros_like(g) for g in grads))
        for node in nodes
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _elementwise(m: Gradients, probe: Probe, _train: bool) -> Finding | None:
    """A diagonal Jacobian: rounding with identity gradient behind a componentwise bound (FSQ)."""
    if m.z.shape != m.q.shape or m.z.shape[1] < 2:
        return None
    mask = torch.zeros_like(m.g)
    mask[:, ::2] = 1
    part = probe.layer.vjp(m.out, m.g * mask, m.src, m.dst)
    if relative(part * (1 - mask), m.got) > EXPLAINS:
        return None
    rate = m.got / m.g
    text = f"{m.where}: the Jacobian is diagonal with entries {float(rate.min()):.3g} to {float(rate.max()):.3g}: a bound, rounded"
    return Finding("straight-through", evidence=text)


def _fixed_linear(m: Gradients, probe: Probe, _train: bool) -> Finding | None:
    """One constant matrix for all latents: straight-through between linear maps into and out of code space."""
    if m.src != "z_q" or len(m.z) < 2:
        return None
    g = m.g[:1].expand_as(m.g)
    got = probe.layer.vjp(m.out, g, m.src, m.dst)
    if relative(got - got[:1], got) > EXPLAINS:
        return None
    text = f"{m.where}: Jᵀ is one matrix for all latents: the identity in code space between linear maps"
    return Finding("straight-through", evidence=text)


def _agreed(verdicts: list[Finding]) -> Finding:
    if len({(v.value, v.mistake) for v in verdicts}) == 1:
        count = f" (the same on all {len(verdicts)} levels)" if len(verdicts) > 1 else ""
        return Finding(verdicts[0].value, evidence=verdicts[0].evidence + count, mistake=verdicts[0].mistake)
    if len({v.value for v in verdicts}) == 1:  # a mistake on one level only is a mistake
        return next(v for v in verdicts if v.mistake is not None)
    said = ", ".join(f"{level}: {v.value or 'unknown'}" for level, v in enumerate(verdicts))
    return Finding("other", evidence=f"the levels differ: {said}")


def _identify(probe: Probe, *, train: bool) -> Finding:
    out = probe.train if train else probe.evaluation
    if not out.z_q.tensor.requires_grad:
        return Finding("none", evidence=f"z_q of a {'train' if train else 'eval'} pass is detached from z")
    if not bool(probe.layer.vjp(out, _cotangents(out.z_q.rows)).any()):
        return Finding("none", evidence="z to z_q: the gradient is exactly 0")
    if not out.levels and out.codes is not None and out.codes.shape[1] > 1 and len(out.codebook) > 1:
        raise Unknown("code space of the levels was not located")
    return _agreed([_verdict(m, probe, train=train) for m in _measure(probe, out)])


def _named(name: str, *, train: bool) -> Callable[[Probe], Findings]:
    @attempt(name)
    def identifier(probe: Probe) -> Findings:
        return {name: _identify(probe, train=train)}

    return identifier


estimator = _named("estimator", train=True)
estimator_in_eval = _named("estimator_in_eval", train=False)
