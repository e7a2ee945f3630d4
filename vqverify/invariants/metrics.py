"""Numbers that a layer reports about its codes: perplexity and usage (theory T31).

A reported number is recognised by its value on a generic batch, coarsely; the law is then checked tightly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import names, scalars, trait
from vqverify.quantizer import Quantized, Quantizer

U32 = 2.0**-24  # metrics are taken in single precision at best
GUARD = 1e-9  # the ε inside a logarithm that is customary: 1e-10


def _shares(out: Quantized, size: int) -> np.ndarray | None:
    if out.codes is None or out.codes.shape[1] != 1:
        return None
    codes = out.codes[:, 0].cpu().numpy()
    counts = np.bincount(codes[codes >= 0], minlength=size)
    return counts / max(1, counts.sum())


def _entropy(shares: np.ndarray) -> float:
    used = shares[shares > 0]
    return float(-(used * np.log(used)).sum())


def _probe(subject: Quantizer) -> tuple[list[float], np.ndarray, list[str]] | None:
    size = trait(subject, "codebook_size")
    if not isinstance(size, int) or size < 4:
        return None
    generator = torch.Generator().manual_seed(3)
    scale = float(subject.codebooks()[0].abs().mean()) if subject.codebooks() else 1.0
    z = (scale or 1.0) * torch.randn(max(4 * size, subject.domain.min_n), subject.domain.dim, generator=generator)
    out = subject.forward(z.to(subject.domain.dtype), train=False, seed=3)
    shares = _shares(out, size)
    return None if shares is None or (shares > 0).sum() < 3 else (scalars(out), shares, names(out))


def _perplexities(subject: Quantizer) -> tuple[str, ...]:
    """Places of the outputs that are a perplexity, right or by a known mistake."""
    probe = _probe(subject)
    if probe is None:
        return ()
    numbers, shares, called = probe
    h = _entropy(shares)
    known = [np.exp(h), 2**h, np.exp(h / np.log(2))]
    entropies = [h, h / np.log(2)]  # right, where they are not called a perplexity
    return tuple(
        f"output {i}"
        for i, (x, name) in enumerate(zip(numbers, called, strict=True))
        if any(abs(x - y) < 0.1 * y for y in (known + entropies if "perplexity" in name.lower() else known))
    )


def _usages(subject: Quantizer) -> tuple[str, ...]:
    probe = _probe(subject)
    if probe is None:
        return ()
    numbers, shares, _ = probe
    share, latents = (shares > 0).mean(), 4 * len(shares)
    known = [share, (np.flatnonzero(shares).max() + 1) / len(shares), (shares > 0).sum() / latents]
    return tuple(f"output {i}" for i, x in enumerate(numbers) if any(abs(x - y) < 0.02 * y for y in known))


def _read(subject: Quantizer, case: Case) -> Iterator[tuple[float, np.ndarray, int]]:
    """The reported number with the shares of the codes and the number of latents, in both modes."""
    assert case.part is not None
    place = int(case.part.removeprefix("output "))
    for train in (False, True):
        subject.restore()
        if case.codebook is not None:
            subject.set_codebook(case.codebook)
        out = subject.forward(case.z, train=train, seed=case.seed)
        shares, numbers = _shares(out, trait(subject, "codebook_size")), scalars(out)
        if shares is not None and place < len(numbers):
            yield numbers[place], shares, len(case.z)


@invariant(
    "metrics.perplexity",
    source="van den Oord 2017 (code); theory T31",
    needs=("codes",),
    parts=_perplexities,
    corners=("single", "on-code", "tie"),
    mutants=("perplexity_base", "perplexity_epsilon", "perplexity_is_entropy"),
    hint="exp with the natural logarithm, 2** with log2; an ε inside the logarithm no larger than 1e-10.",
)
def perplexity(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Perplexity is exp H in nats = 2^H in bits of the batch's code frequencies: 1 to the number of codes in use."""
    for value, shares, n in _read(subject, case):
        k, want = len(shares), float(np.exp(_entropy(shares)))
        allowed = (k + n + 16) * U32 * want * max(1.0, np.log(k)) + k * GUARD * want
        yield within(value - want, allowed, "perplexity", f"perplexity {value:.6g} of codes with exp H = {want:.6g}")


@invariant(
    "metrics.usage",
    source="definition; theory T31",
    needs=("codes",),
    parts=_usages,
    corners=("single", "on-code", "tie"),
    mutants=("usage_of_range",),
    hint="len(unique(codes)) / K: not the largest index, not the number of latents.",
)
def usage(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Usage counts the distinct codes of the batch and lies in (0, 1]."""
    for value, shares, _ in _read(subject, case):
        yield holds(0 < value <= 1, "range", f"usage is {value:.6g}")
        want = float((shares > 0).mean())
        yield within(
            value - want,
            4 * U32,
            "usage",
            f"usage {value:.6g} with {int((shares > 0).sum())} of {len(shares)} codes in use",
        )
