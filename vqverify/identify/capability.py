"""What a layer offers and whether it is deterministic and hard: the traits that decide which rows apply."""

from __future__ import annotations

import torch
from torch import Tensor

from vqverify.identify.probes import Findings, Probe, Unknown, attempt, code_rows, unknown_
from vqverify.quantizer import Finding, Quantized


def _best_pass(probe: Probe) -> Quantized:
    """A training pass, or an eval pass where training raises."""
    try:
        return probe.train
    except Exception:  # noqa: BLE001
        return probe.evaluation


@attempt("codes", "loss", "codebook", "accumulators", "levels", "decode")
def offers(probe: Probe) -> Findings:
    """What can be read: codes, loss, codebook, accumulators, the levels of a traced pass, decode methods."""
    layer = probe.layer
    books, counted = layer.codebooks(), layer.accumulators()
    found = {
        "codebook": Finding(
            bool(books), evidence=f"{len(books)} stored (K, D) tensors: {[tuple(e.shape) for e in books]}"
        ),
        "accumulators": Finding(bool(counted), evidence=f"{len(counted)} pairs of EMA counts and sums"),
        "decode": Finding(
            bool(layer.decoders), evidence=f"public decode methods: {', '.join(layer.decoders) or 'none'}"
        ),
    }
    try:
        out = _best_pass(probe)
    except Exception as error:  # noqa: BLE001
        return found | {name: unknown_(str(error)) for name in ("codes", "loss", "levels")}
    codes, loss = out.codes, out.loss
    shape = None if codes is None else tuple(codes.shape)
    found["codes"] = Finding(
        codes is not None,
        evidence=f"integer output, read as (N, L) = {shape}" if shape else "no integer output",
    )
    found["loss"] = Finding(
        loss is not None, evidence=f"{len(out.losses)} scalar outputs" if out.losses else "no loss output"
    )
    located = len(out.levels)
    text = (
        f"{located} of {len(books)} levels located in a traced pass"
        if books
        else "no stored codebook to locate levels by"
    )
    found["levels"] = Finding(bool(located) and located == len(books), evidence=text)
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().amax() if a.numel() else 0.0)))


def _repeats(probe: Probe, *, train: bool) -> tuple[bool, str]:
    first = probe.train if train else probe.evaluation
    others = [probe.run(probe.z, train=train, seed=seed) for seed in (probe.seed + 1, probe.seed + 2)]
    values = all(_same(first.z_q.rows.detach(), other.z_q.rows.detach()) for other in others)
    codes = all(
        first.codes is None or torch.equal(first.codes, other.codes) for other in others if other.codes is not None
    )
    mode = "train" if train else "eval"
    if values and codes:
        return True, f"three {mode} passes with different seeds from one state agree in z_q and codes"
    return (
        False,
        f"{mode} passes with different seeds from one state differ in {'codes' if not codes else 'z_q'}",
    )


@attempt("deterministic")
def deterministic(probe: Probe) -> Findings:
    """Whether a training pass from one state gives the same z_q and codes whatever the seed."""
    value, evidence = _repeats(probe, train=True)
    return {"deterministic": Finding(value, evidence=evidence)}


@attempt("eval_deterministic")
def eval_deterministic(probe: Probe) -> Findings:
    """The same in eval mode."""
    value, evidence = _repeats(probe, train=False)
    return {"eval_deterministic": Finding(value, evidence=evidence)}


def stochastic(found: Findings) -> Findings:
    """In which modes the layer draws random numbers that matter: none, train, eval, both."""
    train, evaluation = found["deterministic"].value, found["eval_deterministic"].value
    if train is None or evaluation is None:
        missing = found["deterministic" if train is None else "eval_deterministic"]
        return {"stochastic": unknown_(missing.evidence)}
    value = {(True, True): "none", (False, True): "train", (True, False): "eval", (False, False): "both"}[
        train, evaluation
    ]
    evidence = f"{found['deterministic'].evidence}; {found['eval_deterministic'].evidence}"
    return {"stochastic": Finding(value, evidence=evidence)}


def _hard(probe: Probe, *, train: bool) -> Finding:
    """Piecewise constant: a small step of z moves z_q far less than z_q's own spread makes a smooth map move."""
    first = probe.train if train else probe.evaluation
    shift = 1e-2 * probe.latents(probe.n, seed=3)
    other = probe.run(probe.z + shift, train=train, seed=probe.seed if train else 0)
    a, b = first.z_q.rows.detach().double(), other.z_q.rows.detach().double()
    kept = torch.ones(len(a), dtype=torch.bool)
    if first.codes is not None and other.codes is not None:
        kept = (first.codes == other.codes).all(1)
    if int(kept.sum()) < 3:
        raise Unknown("nearly every code changes under a small step")
    _alone(probe, a, shift, train=train)
    rounding = 16 * torch.finfo(first.z_q.tensor.dtype).eps * (a.norm(dim=1) + probe.z.double().norm(dim=1))
    spread = (a - a.mean(0)).norm(dim=1).mean()
    still = ((a - b).norm(dim=1) <= torch.maximum(1e-4 * spread, rounding))[kept].double().mean()
    mode = "train" if train else "eval"
    evidence = f"z_q stays for {float(still):.0%} of the latents that keep their code under a 1% step ({mode})"
    if first.codes is None:
        return Finding(bool(still > 0.5), evidence=evidence)
    return Finding(bool(still > 0.9), evidence=evidence)


def _alone(probe: Probe, first: Tensor, shift: Tensor, *, train: bool) -> None:
    """Statistics of the batch may move every code: then constancy says nothing about one latent."""
    half = len(shift) // 2
    shift = shift.clone()
    shift[:half] = 0
    other = probe.run(probe.z + shift, train=train, seed=probe.seed if train else 0).z_q.rows.detach().double()
    moved = (other - first)[:half].norm(dim=1) > 1e-5 * first.norm(dim=1).mean()
    if float(moved.double().mean()) > 0.5:
        raise Unknown("z_q of a latent depends on the other latents of its batch")


@attempt("hard")
def hard(probe: Probe) -> Findings:
    """Whether z_q of a training pass is piecewise constant."""
    return {"hard": _hard(probe, train=True)}


@attempt("hard_in_eval")
def hard_in_eval(probe: Probe) -> Findings:
    """The same in eval mode."""
    return {"hard_in_eval": _hard(probe, train=False)}


def redrawn(probe: Probe, seed: int) -> list[Tensor]:
    """Codebooks that the layer may hold, of the size of its own: unit rows where it keeps them so."""
    out: list[Tensor] = []
    slots = probe.layer.plan.slots
    for slot, e in zip(slots, probe.layer.codebooks(), strict=True):
        first = next(i for i, other in enumerate(slots) if (other.name, other.index) == (slot.name, slot.index))
        generator = torch.Generator().manual_seed(2000 + 10 * seed + first)  # levels may share a codebook
        rows = torch.randn(e.shape, generator=generator, dtype=torch.float64)
        if probe.layer.plan.sphere or probe.layer.domain.codebook == "sphere":
            rows = rows / rows.norm(dim=1, keepdim=True)
        else:
            size = float(e.double().square().mean().sqrt()) or 1.0
            rows = size * rows * (0.5 + torch.rand(len(rows), 1, generator=generator, dtype=torch.float64))
        out.append(rows.to(e))
    return out


@attempt("settable")
def settable(probe: Probe) -> Findings:
    """Whether writing another codebook makes the layer return its rows."""
    layer = probe.layer
    if not layer.codebooks():
        return {"settable": Finding(value=False, evidence="no stored codebook")}
    seed = probe.seed
    layer.restore()
    wanted = redrawn(probe, 0)
    layer.set_codebook(wanted)
    out = layer.forward(probe.z, train=True, seed=seed, trace=True)
    if out.codes is None:
        raise Unknown("no codes to compare with")
    before = probe.train
    if out.levels:
        pairs = [(level.q_c.rows.detach(), code_rows(out, i, wanted[i])) for i, level in enumerate(out.levels)]
    elif wanted[0].shape[1] == layer.domain.dim:
        total = torch.stack([code_rows(out, i, e) for i, e in enumerate(wanted)]).sum(0)
        pairs = [(out.z_q.rows.detach(), total)]
    else:
        moved = not _same(before.z_q.rows.detach(), out.z_q.rows.detach())
        return {
            "settable": Finding(
                moved, evidence="z_q changed with the codebook; code space was not located to compare rows"
            )
        }
    worst = max(float((got - want).norm() / (want - want.mean(0)).norm().clamp_min(1e-30)) for got, want in pairs)
    return {
        "settable": Finding(
            worst < 0.35,
            evidence=f"after writing random rows, q differs from them by {worst:.2g} of their spread",
        )
    }
