"""Codebook learning by moving averages: plain functions of counts, sums and codes (theory T17-T22)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from vqverify.reference import _checks

LEAST_COUNT = 2.0**-60
"""Counts stop decaying here. Without it an unused code's N and m reach subnormal numbers after 8690 steps at
decay 0.99, where rounding holds them up and m/N drifts (T20); ΣN is off by at most K·2⁻⁶⁰."""


class Statistics(NamedTuple):
    """What a batch says about a codebook: ``counts`` n (K,) and ``sums`` S (K, D) of the assigned latents.

    They add over pieces of a batch (T22): sum them over devices, never average codebooks.
    """

    counts: Tensor
    sums: Tensor


class EmaState(NamedTuple):
    """Codes e (K, D) with accumulators: ``counts`` N (K,), ``sums`` m (K, D); m = N e at the start (T18)."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor


def code_statistics(z: Tensor, codes: Tensor, size: int, *, masked: bool = False) -> Statistics:
    """Return n and S of latents (N, D) assigned to ``codes`` (N,), without a one-hot matrix.

    Sums are accumulated in at least float32, in the order of the latents on a CPU.

    Args:
        z: latents.
        codes: int64 in [0, size), or -1 for latents that do not count.
        size: K.
        masked: whether some codes may be -1.

    Raises:
        TypeError: if the codes have no integer dtype.
        ValueError: on a shape that does not fit, or a code out of range.
    """
    _checks.latents("z", z, None)
    codes = _checks.code_indices(codes, _checks.positive_int("size", size))
    if codes.shape != z.shape[:1] or z.ndim != 2:
        raise ValueError(f"z and codes must be (N, D) and (N,); they were {tuple(z.shape)} and {tuple(codes.shape)}")
    if not masked and len(codes) and int(codes.min()) < 0:
        raise ValueError("codes must be at least 0 unless masked=True; there were some of -1")
    wide = torch.promote_types(z.dtype, torch.float32)
    if masked:
        # one more bin for the latents that do not count; theirs may be NaN, but it is cut off
        codes = torch.where(codes < 0, size, codes)
    bins = size + masked
    counts = torch.bincount(codes, minlength=bins)[:size].to(wide)
    sums = torch.zeros(bins, z.shape[-1], dtype=wide, device=z.device)
    sums.index_add_(0, codes, z.detach().to(wide))
    return Statistics(counts, sums[:size])


def all_reduce(batch: Statistics) -> Statistics:
    """Return the sums of the statistics over all processes of the default group, if there is one (T22).

    Raises:
        ValueError: if the latents of a code are so large that their sum overflows.
    """
    flat = all_reduce_sum(torch.cat([batch.counts.unsqueeze(1), batch.sums], 1))
    _checks.finite("the sum of the latents z of a code", flat, learnt=True)
    return Statistics(flat[:, 0], flat[:, 1:])


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all processes of the default group; ``x`` itself without one."""
    if distributed.is_available() and distributed.is_initialized():
        x = x.clone()
        distributed.all_reduce(x)
    return x


def first_with(z: Tensor) -> int | None:
    """Return the first process of the default group whose ``z`` has rows, 0 without a group; None if there is none."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0 if len(z) else None
    rows = torch.zeros(distributed.get_world_size(), dtype=torch.int64, device=z.device)
    rows[distributed.get_rank()] = len(z)
    holders = all_reduce_sum(rows).nonzero()
    return int(holders[0]) if len(holders) else None


def broadcast(x: Tensor, source: int) -> Tensor:
    """Return the ``x`` of process ``source`` in all processes of the default group; ``x`` itself without one."""
    if distributed.is_available() and distributed.is_initialized():
        x = x.clone(memory_format=torch.contiguous_format)
        distributed.broadcast(x, source)
    return x


def ema_update(state: EmaState, batch: Statistics, decay: float, smoothing: float = 0.0) -> EmaState:
    """Return N' = γN + (1-γ)n, m' = γm + (1-γ)S, e' = m'/N' (van den Oord et al. 2017; theory T17).

    Without smoothing a code without latents keeps its value bit for bit, for ever (T20); its N and m decay
    together, down to :data:`LEAST_COUNT`.
    With it e' = m'/N̂, N̂ = (N' + ε) T/(T + Kε), T = ΣN': codes shrink by the factor ρ of T21.

    Args:
        state: codes and accumulators before the step, N and m in at least float32.
        batch: counts and sums of the batch.
        decay: γ in [0, 1].
        smoothing: ε ≥ 0 of the Laplace smoothing; 0 for none.

    Raises:
        ValueError: if ``decay`` or ``smoothing`` is out of range, or the shapes do not fit.
    """
    decay = _checks.number("decay", decay, 0, 1)
    smoothing = _checks.number("smoothing", smoothing)
    _checks.same_shape("batch.sums", batch.sums, "state.codebook", state.codebook)
    _checks.same_shape("state.sums", state.sums, "state.codebook", state.codebook)
    _checks.counts("batch.counts", batch.counts, len(state.codebook))
    _checks.counts("state.counts", state.counts, len(state.codebook))
    old, n = state.codebook.to(state.sums.dtype), batch.counts.to(state.counts.dtype)
    used = (n > 0).unsqueeze(1)
    counts = (state.counts * decay).add_(n, alpha=1 - decay).clamp_(min=LEAST_COUNT)
    # decay 1 keeps everything: m'/N' would still round
    moves = used & (decay < 1)
    # where the count of an unused code stops, its sum stops with it
    keep = torch.where(n > 0, decay, counts / state.counts).to(state.sums.dtype)
    sums = (state.sums * keep.unsqueeze(1)).add_(batch.sums.to(state.sums.dtype), alpha=1 - decay)
    if smoothing:
        codebook = sums / laplace_counts(counts, smoothing).unsqueeze(1)
    else:
        codebook = torch.where(moves, sums / counts.unsqueeze(1), old)
    return EmaState(codebook.to(state.codebook.dtype), counts, sums)


def laplace_counts(counts: Tensor, smoothing: float) -> Tensor:
    """Return N̂ = (N + ε) T/(T + Kε) with T = ΣN: the same total, no count at 0 (T21).

    Raises:
        ValueError: if ε is negative.
    """
    smoothing = _checks.number("smoothing", smoothing)
    total = counts.sum()
    return (counts + smoothing) * (total / (total + len(counts) * smoothing))


def memoryless_update(codebook: Tensor, batch: Statistics, rate: float) -> Tensor:
    """Return c' = (1 - η)c + η z̄ for used codes (Huh et al. 2023, eq. 11): a moving average without memory.

    It is a step of gradient descent with rate η on Σ ½|z̄ - c|² over the used codes (T17).

    Args:
        codebook: codes (K, D).
        batch: counts and sums of the batch.
        rate: η in [0, 1]; 1 - γ in the terms of :func:`ema_update`.

    Raises:
        ValueError: if ``rate`` is out of range, or the shapes do not fit.
    """
    rate = _checks.number("rate", rate, 0, 1)
    _checks.same_shape("batch.sums", batch.sums, "codebook", codebook)
    _checks.counts("batch.counts", batch.counts, len(codebook))
    used = (batch.counts > 0).unsqueeze(1)
    old = codebook.to(batch.sums.dtype)
    mean = batch.sums / batch.counts.clamp(min=1).unsqueeze(1)
    return torch.where(used & (rate > 0), old * (1 - rate) + mean * rate, old).to(codebook.dtype)
