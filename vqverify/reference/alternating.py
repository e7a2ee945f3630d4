"""Alternating optimization: codes for fixed latents, then the task for fixed codes (001 eq. 17-18; T24)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from vqverify.reference import _checks
from vqverify.reference.codebooks import all_reduce, code_statistics
from vqverify.reference.lookup import nearest_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from torch import Tensor, nn


@torch.no_grad()
def code_step(codebook: Tensor, z: Tensor, rate: float = 1.0) -> Tensor:
    """Return codes after one inner step: assign, then c_i ← c_i + η (z̄_i - c_i) for used codes.

    This is c_i + η_i (S_i - n_i c_i) with η_i n_i = η ∈ [0, 2]: Σ min|z - c|² never rises (T24). η = 1 is
    a step of Lloyd's algorithm.

    Args:
        codebook: codes (K, D).
        z: latents (..., D); they stay.
        rate: η in [0, 2].

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: if ``rate`` is out of range, the shapes do not fit, or ``z`` holds NaN or infinity.
    """
    _checks.matrix_pair(z, codebook)
    rate = _checks.number("rate", rate, 0, 2)
    rows = z.reshape(-1, z.shape[-1])
    batch = all_reduce(code_statistics(rows, nearest_codes(rows, codebook), len(codebook)))
    mean = batch.sums / batch.counts.clamp(min=1).unsqueeze(1)
    moved = codebook + rate * (mean.to(codebook.dtype) - codebook)
    return torch.where((batch.counts > 0).unsqueeze(1), moved, codebook)


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Generator[None]:
    """Take parameters out of the graph for a while: passes inside leave them without gradient."""
    held = [p for p in parameters if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


def alternate(
    codebook: Tensor,
    latents: Callable[[], Tensor],
    task_step: Callable[[], object],
    *,
    inner: int = 1,
    outer: int = 1,
    rate: float = 1.0,
) -> None:
    """Run ``inner`` steps of the codes on fixed latents, then ``outer`` steps of the task on fixed codes.

    The codes move in place, outside any graph; they take no gradient in the task phase, even if they are a
    parameter. The task phase sees the new codes: a fused pass would use the old ones, and is simultaneous
    rather than alternating (T24).

    Args:
        codebook: codes (K, D), a buffer or a parameter.
        latents: encodes the batch; called once, without graph.
        task_step: one step of the optimizer of encoder and decoder.
        inner: steps of the codes (001, table 10).
        outer: steps of the task.
        rate: η of :func:`code_step`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _checks.positive_int("inner", inner, at_least=0)
    _checks.positive_int("outer", outer, at_least=0)
    with torch.no_grad():
        z = latents()
        for _ in range(inner):
            codebook.copy_(code_step(codebook, z, rate))
    learnt = isinstance(codebook, torch.nn.Parameter)
    with frozen([codebook] if learnt else []):
        for _ in range(outer):
            task_step()
