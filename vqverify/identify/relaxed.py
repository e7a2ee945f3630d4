"""Relaxations: gradients that run through a softmax over the codes, and its temperature.

The softmax is found in the recorded graph, by what it saved; silencing it must silence the whole gradient.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from vqverify.identify.probes import Findings, Probe, Unknown, attempt, latents_at
from vqverify.identify.sampled import sampled
from vqverify.quantizer import Finding

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from torch import Tensor

    from vqverify.identify.estimator import Gradients
    from vqverify.quantizer import Quantized


def nodes(root: Any) -> Iterator[Any]:
    """The softmax operations in the graph behind a tensor, last first."""
    seen: set[Any] = set()
    queue = [root]
    while queue:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("SoftmaxBackward") and weights(node).shape[-1] > 1:
            yield node
        queue.extend(parent for parent, _ in node.next_functions)


def weights(node: Any) -> Tensor:
    """What the softmax returned: probabilities, over the last axis here wherever it was."""
    axis = int(node._saved_dim)  # noqa: SLF001
    value: Tensor = node._saved_result.detach()  # noqa: SLF001
    # the axis is saved as an unsigned number: −1 comes back as 2⁶⁴ − 1
    return value.movedim(axis if axis < value.ndim else axis - 2**64, -1)


def softmax(m: Gradients, probe: Probe, train: bool) -> Finding | None:
    """Every gradient runs through a softmax over the codes: `gumbel` if its weights differ between seeds."""
    found = list(nodes(m.tensor.grad_fn))
    if not found:
        return None
    with _silenced(found):
        if bool(probe.layer.vjp(m.out, m.g, m.src, m.dst).any()):
            return None
    first = weights(found[0])
    again = next(nodes(probe.run(probe.z, train=train, seed=1).z_q.tensor.grad_fn), None)
    noisy = again is not None and not torch.allclose(weights(again), first, rtol=1e-4, atol=1e-6)
    text = f"{m.where}: every gradient runs through a softmax over {first.shape[-1]} codes"
    if noisy:
        return Finding("gumbel", evidence=f"{text}, whose weights differ between seeds")
    return Finding("softmax", evidence=f"{text}, whose weights do not depend on the seed")


@contextmanager
def _silenced(found: list[Any]) -> Generator[None]:
    def silence(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else torch.zeros_like(g) for g in grads)

    handles = [node.register_prehook(silence) for node in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@attempt("temperature")
def temperature(probe: Probe) -> Findings:
    """τ of a softmax: from the size of Gumbel noise in its logits, or from its slope against distances; else of drawn codes."""
    first = next(nodes(probe.train.z_q.tensor.grad_fn), None)
    if first is None:
        return sampled(probe)
    one = _centred(weights(first))
    again = next(nodes(probe.run(probe.z, train=True, seed=1).z_q.tensor.grad_fn))
    difference = one - _centred(weights(again))
    k = one.shape[-1]
    if float(difference.abs().mean()) > 1e-3:
        # log p = (logit + Gumbel)/τ + constant: a difference of two draws has variance 2 (π²/6) (K − 1)/K / τ²
        tau = math.pi / math.sqrt(3) * math.sqrt((k - 1) / k) / float(difference.square().mean().sqrt())
        text = (
            f"the weights of two seeds differ as Gumbel noise over τ = {tau:.3g} makes them, for {one.numel()} weights"
        )
        return {"temperature": Finding(float(f"{tau:.3g}"), evidence=text)}
    return {"temperature": _by_distance(probe.train, one)}


def _by_distance(out: Quantized, logs: Tensor) -> Finding:
    if not out.codebook or len(out.codebook[0]) != logs.shape[-1]:
        raise Unknown("no stored codebook to compare the softmax with")
    z = latents_at(out, 0).double()
    distance = torch.cdist(z, out.codebook[0].double())
    for name, logit in (
        ("−|z − e|²", -distance.square()),
        ("−|z − e|", -distance),
        ("z·e", z @ out.codebook[0].double().t()),
    ):
        x = (logit - logit.mean(-1, keepdim=True)).reshape(-1)
        slope = float((x @ logs.reshape(-1)) / (x @ x))
        if slope > 0 and float((logs.reshape(-1) - slope * x).norm() / logs.norm()) < 0.02:
            return Finding(
                float(f"{1 / slope:.3g}"), evidence=f"the weights are softmax({name} / τ) with τ = {1 / slope:.3g}"
            )
    raise Unknown("the softmax is of no distance that probing knows")


def _centred(p: Tensor) -> Tensor:
    """Logits up to a constant: log p minus its mean over the codes, (N, K)."""
    logs = p.double().clamp_min(1e-30).log().reshape(-1, p.shape[-1])
    return logs - logs.mean(-1, keepdim=True)
