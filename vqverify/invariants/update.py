"""How an EMA codebook moves in one training step (001 eq. 11, 002 eq. 3-5; theory T16-T21)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.averages import EMA, Step, codes_from, divisor, kept, shrinkage, smoothed, steps, stored
from vqverify.invariants.lookup import forward_bound
from vqverify.invariants.measure import array, kept_within, norms, tiny
from vqverify.quantizer import Quantizer
from vqverify.symbolic import oracles


@invariant(
    "update.ema_law",
    follows=("honesty.traits[decay]", "update.initial_state", "update.empty_code_still"),
    source="002 eq. 3-5; theory T17, T21",
    needs=(*EMA, "decay", "replacement=none"),
    state="both",
    mutants=(
        "ema_decay_swapped",
        "ema_counts_in_half",
        "ema_sum_for_mean",
        "ema_not_written_back",
        "ema_smoothed_shares",
    ),
    hint="N ← γN + (1 − γ)n and m ← γm + (1 − γ)S with γ the decay, in float32 at least, then e = m/N.",
)
def ema_law(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Counts, sums and codes follow the recursion N′ = γN + (1 − γ)n, m′ = γm + (1 − γ)S, e′ = m′/N′ (smoothed if declared)."""
    for step in steps(subject, case):
        decay = step.decay
        N, m, _ = oracles.ema_step(step.N, step.m, step.n, step.S, decay)
        want = kept(subject, N)
        u, floor = step.u, tiny(subject)
        allowed_n = 8 * u * (np.abs(step.N) + step.n) + floor
        if stored(subject):  # smoothing divides by the rounded total of all counts
            allowed_n = allowed_n + (len(want) + 16) * u * want
        yield within(
            step.N2 - want, allowed_n, "counts", f"N′ − (γN + (1 − γ)n), γ = {decay:g}, level {step.view.index}"
        )
        allowed_m = (step.terms + 8) * u * (norms(step.m) + step.size) + floor
        yield within(
            norms(step.m2 - m), allowed_m, "sums", f"|m′ − (γm + (1 − γ)S)|, γ = {decay:g}, level {step.view.index}"
        )
        yield from _quotient(subject, step)


def _quotient(subject: Quantizer, step: Step) -> Iterator[Clause]:
    """e′ against the accumulators that the layer itself has now: its own quotient, judged apart from their law."""
    N, m = step.N2, step.m2
    fine = (N > 1e-6) & np.isfinite(m).all(1) & np.isfinite(N)
    want = codes_from(subject, m, N)
    fine &= np.isfinite(want).all(1)
    if fine.any():
        error = norms(step.e2 - want)[fine]
        relative = (len(N) + want.shape[1] + 12) * step.u
        allowed = relative * norms(want) + step.kept(norms(want)) + tiny(subject)
        yield within(error, allowed[fine], "codes", f"|e′ − m′/N′| at level {step.view.index}")


@invariant(
    "update.ema_is_commitment",
    follows=("honesty.traits[decay]", "update.ema_law"),
    source="001 eq. 11, A.2; theory T16, T17",
    state="both",
    needs=(*EMA, "decay", "replacement=none", "metric=euclidean"),
    corners=("on-code", "single", "tie", "unit", "parallel"),
    mutants=("ema_decay_swapped", "ema_sum_for_mean"),
    hint="a gradient step on the commitment loss at β = 1 has rate (1 − γ)/N′ a code: a sum for a mean, or γ for 1 − γ, is not.",
)
def ema_is_commitment(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The EMA step is gradient descent on the commitment loss A_β at β = 1, with step (1 − γ)/N′ a code (times ρ if smoothed)."""
    for step in steps(subject, case):
        decay = step.decay
        N = decay * step.N + (1 - decay) * step.n
        with np.errstate(divide="ignore", invalid="ignore"):
            base = (
                step.m / step.N[:, None]
            )  # e itself, but for smoothing (T21), where the accumulators agree with it (T18)
            apart = norms(base - step.e)
            gradient = np.zeros_like(base)
            for view, weight in zip(step.views, step.weights, strict=True):
                kept = view.k >= 0
                per_latent = oracles.commitment_gradients(view.z[kept], base[view.k[kept]], "A", 1.0).dq
                np.add.at(gradient, view.k[kept], weight * per_latent)
            want = (base - ((1 - decay) / N)[:, None] * gradient) * (N / smoothed(subject, N))[:, None]
            # m and N are rounded on their way; what S and e lose there returns divided by N′
            largest = norms(base) + step.size / np.where(step.n > 0, step.n, 1)
            allowed = (step.terms + len(N) + 16) * step.u * (largest * (decay * step.N + step.n) / N + norms(base))
            allowed = allowed + step.kept(norms(want))
        agree = apart <= 1e-3 * norms(step.e) + 2 * step.kept(norms(step.e))
        fine = agree & (N > 1e-3) & np.isfinite(step.e2).all(1) & np.isfinite(want).all(1)
        if fine.any():
            error = norms(step.e2 - want)[fine]
            yield within(error, allowed[fine], "gradient step", f"|e′ − (e − (1 − γ)/N′ ∇)| at level {step.view.index}")


@invariant(
    "update.initial_state",
    source="theory T18",
    needs=(*EMA, "replacement=none"),
    mutants=("ema_zero_counts",),
    corners=("single", "on-code"),
    hint="start with m = N·e: zero counts beside a copied codebook let one token throw the codebook away.",
)
def initial_state(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A fresh layer's accumulators agree with its codebook, m₀ = N₀e₀: one batch moves no code further than the law allows."""
    if case.codebook is not None or case.history:
        return
    for index, (state, book) in enumerate(zip(subject.accumulators(), subject.codebooks(), strict=False)):
        N, m, e = array(state.counts), array(state.sums), array(book)
        u = torch.finfo(torch.float32).eps / 2
        want = N[:, None] * e
        # a codebook that the first batch initialised has made its first step by now: then e is m over the smoothed counts
        error = np.minimum(norms(m - want), norms(m - divisor(subject, N)[:, None] * e))
        if subject.domain.codebook == "sphere":
            error = norms(m - norms(m)[:, None] * e)
        rounded = N * kept_within(book.dtype, norms(e), e.shape[1])  # m may know the code before it was rounded
        yield within(error, 16 * u * norms(want) + rounded + tiny(subject), "m = N·e", f"|m₀ − N₀e₀| at level {index}")
        yield holds(
            (N > 0).all(), "zero counts", f"{int((N <= 0).sum())} of {len(N)} codes start with count 0 at level {index}"
        )


@invariant(
    "update.empty_code_still",
    follows=("update.initial_state",),
    source="theory T20, T21",
    needs=(*EMA, "replacement=none"),
    state="both",
    mutants=("ema_moves_empty_codes", "ema_smoothed_shares"),
    hint="a code that no latent chose keeps its place: decay m and N together, and give no momentum to unused rows.",
)
def empty_code_still(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A code without latents does not move; with Laplace smoothing it moves by exactly the factor ρ of T21."""
    for step in steps(subject, case):
        with np.errstate(divide="ignore", invalid="ignore"):
            divided = divisor(subject, step.N)
            stepped = norms(step.m - divided[:, None] * step.e) <= norms(step.m - step.N[:, None] * step.e)
            # a fresh code is m/N, not smoothed yet
            factor = shrinkage(subject, step) * np.where(stepped, divided / step.N, 1.0)
        if subject.domain.codebook == "sphere":
            factor = np.ones_like(factor)
        empty = (step.n == 0) & (step.N > 1e-6) & np.isfinite(factor)
        if case.codebook is not None and case.history:
            return
        if empty.any():
            want = factor[:, None] * step.e
            allowed = (len(step.N) + 16) * step.u * norms(want) + 2 * step.kept(norms(want)) + tiny(subject)
            yield within(
                norms(step.e2 - want)[empty], allowed[empty], "moved", f"unused codes moved at level {step.view.index}"
            )


@invariant(
    "update.conserves",
    follows=("honesty.traits[decay]", "update.ema_law"),
    source="theory T19",
    needs=(*EMA, "decay", "replacement=none"),
    state="both",
    mutants=("ema_counts_in_half", "ema_decay_swapped"),
    hint="every latent is counted once: Σ N′ = γ Σ N + (1 − γ) n.",
)
def conserves(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Total count and total sum follow the batch: Σ N′ = γ Σ N + (1 − γ) n, and the same for m."""
    for step in steps(subject, case):
        decay = step.decay
        total = decay * step.N.sum() + (1 - decay) * step.n.sum()
        weight = step.N.sum() + step.n.sum()
        yield within(step.N2.sum() - total, (len(step.N) + 8) * step.u * weight, "counts", "ΣN′ − (γΣN + (1 − γ)n)")
        want = decay * step.m.sum(0) + (1 - decay) * step.S.sum(0)
        size = norms(step.m).sum() + step.size.sum()
        allowed = (len(step.N) + step.terms.sum() + 8) * step.u * size + tiny(subject)
        yield within(norms((step.m2.sum(0) - want)[None]), allowed, "sums", "|Σm′ − (γΣm + (1 − γ)Σz)|")


@invariant(
    "update.convex",
    follows=("update.ema_law",),
    source="theory T17",
    needs=(*EMA, "decay", "replacement=none", "metric=euclidean"),
    state="both",
    mutants=("ema_sum_for_mean",),
    corners=("single", "unit", "parallel"),
    hint="a moved code lies between its old place and the mean of its latents; one that overshoots was moved by a sum.",
)
def convex(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A moved code is a convex combination of its old self and the mean of its latents (times ρ with smoothing)."""
    for step in steps(subject, case):
        used = (step.n > 0) & (step.N > 1e-3) & np.isfinite(step.e2).all(1)
        if not used.any() or (case.codebook is not None and case.history):
            continue
        rho = shrinkage(subject, step)[used][:, None]
        old, mean = step.e[used], (step.S[used] / step.n[used][:, None])
        new = step.e2[used] / np.where(rho > 0, rho, 1)
        if case.history:  # an old code carries its own smoothing factor
            old = old * (divisor(subject, step.N) / step.N)[used][:, None]
        outside = np.abs(norms(new - old) + norms(new - mean) - norms(mean - old))
        size = norms(old) + norms(mean) + step.size[used] / step.n[used]
        # a point at distance δ from a segment of length ℓ lengthens the way by up to 2δ
        allowed = (
            2
            * (step.terms[used] + len(step.N) + 16)
            * step.u
            * size
            * (1 + step.N[used] + step.n[used])
            / np.minimum(1, step.N[used])
        )
        allowed = allowed + 4 * step.kept(size)  # the code before and the code after were rounded
        yield within(
            outside, allowed, "convex", f"e′ off the segment from e to the mean of its latents, level {step.view.index}"
        )


@invariant(
    "update.uses_old_codes",
    source="001 §5.4; 002 eq. 3-5",
    needs=EMA,
    state="both",
    mutants=("quantise_after_update",),
    hint="look the codes up, return them, then update: a z_q from the updated codebook is not what the encoder was quantised to.",
    corners=("single", "unit"),
)
def uses_old_codes(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The z_q of a training step comes from the codebook before the step's update, not from the one after it."""
    for step in steps(subject, case):
        for view in step.views:
            kept = view.k >= 0
            moved = norms(step.e2[view.k] - view.q)
            bound = forward_bound(subject, view, step.u)
            clear = kept & np.isfinite(bound) & (moved > 8 * bound) & np.isfinite(moved)
            if clear.any():
                from_old, from_new = norms(view.value - view.q), norms(view.value - step.e2[view.k])
                late = clear & (from_new < from_old) & (from_new <= 4 * bound)
                yield holds(
                    not late.any(),
                    "after the update",
                    f"z_q of latents {np.flatnonzero(late)[:5].tolist()} are codes after the update",
                )


@invariant(
    "update.frozen",
    source="definition of eval mode",
    needs=("codebook",),
    state="both",
    mutants=("eval_that_learns",),
    hint="guard every write to the codebook and its accumulators with self.training.",
)
def frozen(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """In eval mode no code and no accumulator moves."""
    books, states = subject.codebooks(), subject.accumulators()
    subject.forward(case.z, train=False, seed=case.seed)
    for index, (old, new) in enumerate(zip(books, subject.codebooks(), strict=True)):
        yield holds(torch.equal(old, new), "codebook", f"the codebook of level {index} moved in eval")
    for index, (old, new) in enumerate(zip(states, subject.accumulators(), strict=True)):
        same = torch.equal(old.counts, new.counts) and torch.equal(old.sums, new.sums)
        yield holds(same, "accumulators", f"the accumulators of level {index} moved in eval")
