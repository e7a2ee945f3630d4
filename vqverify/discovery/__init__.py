"""Finding how to call a layer, by shapes and behaviour alone: no name of an attribute or a library counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vqverify.discovery.accumulators import find_accumulators
from vqverify.discovery.bench import Bench
from vqverify.discovery.codebook import find_codebook
from vqverify.discovery.codespace import effective
from vqverify.discovery.decoders import find_decoders
from vqverify.discovery.entry import describe, find_calls
from vqverify.discovery.errors import DiscoveryError
from vqverify.discovery.forms import integers
from vqverify.discovery.layouts import Candidate, read, read_in_train
from vqverify.discovery.outputs import find_codes, find_losses
from vqverify.discovery.training import find_warm
from vqverify.discovery.trial import Trial
from vqverify.subject.plan import Call, Output, Plan, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    from vqverify.discovery.trial import Path

__all__ = ["DiscoveryError", "discover"]


def discover(module: nn.Module, factory: Callable[..., Any], kwargs: Mapping[str, Any], *, dtype: torch.dtype) -> Plan:
    """Find how to use a module as a quantizer.

    Args:
        module: the built subject; given back in the state in which it came.
        factory: what built it: its signature's defaults name sizes.
        kwargs: what it was built with.
        dtype: of the latents to probe with.

    Returns:
        A plan with evidence for each conclusion. A layer that raises on every call gets a best guess, with
        the exception as `evidence["call"]`.

    Raises:
        DiscoveryError: if calls work and none returns a tensor of the input's size.
    """
    trial = Trial(module)
    try:
        return _discover(trial, factory, kwargs, dtype)
    finally:
        trial.close()


def _discover(trial: Trial, factory: Callable[..., Any], kwargs: Mapping[str, Any], dtype: torch.dtype) -> Plan:
    dims, avoid = integers(trial.module, factory, kwargs)
    found, evidence = find_calls(trial, dims, avoid, dtype)
    if not found:
        return Plan(dims[0] if dims else 4, (Call("BND", Output((), "BND")),), evidence=evidence)
    first = found[0]
    plan = Plan(
        first.grid.dim,
        (Call(first.grid.layout, first.z_q),),
        method=trial.method,
        then=trial.then,
        arguments=dict(trial.arguments),
    )
    bench = Bench(trial, plan, dtype, train=first.train)
    warm, evidence["warm"] = find_warm(bench, leaked=first.warm)
    if warm:
        found = [read(trial, candidate.grid, dtype) or candidate for candidate in found]
        first = found[0]
        evidence |= describe(found)
    calls = tuple(_call(trial, candidate, evidence if candidate is first else {}) for candidate in found)
    bench.plan = replace(plan, calls=calls, warm=warm)
    look = bench.tune()
    if look is not None:
        odd = not (first.repeats and first.finite and first.constant >= 0.9 and "NOT" not in evidence["codes"])
        slots, evidence["codebook"] = find_codebook(bench, look, odd=odd)
        sphere = bool(slots) and all(_on_sphere(bench, slot) for slot in slots)
        bench.plan = replace(bench.plan, slots=slots, sphere=sphere)
        accumulators, evidence["accumulators"] = find_accumulators(bench)
        decoders, evidence["decoders"] = find_decoders(bench, look)
        bench.plan = replace(bench.plan, accumulators=accumulators, decoders=decoders)
    min_n, evidence["min_n"] = find_min_n(bench)
    return replace(bench.plan, min_n=min_n, evidence=evidence)


def _on_sphere(bench: Bench, slot: Slot) -> bool:
    if slot.transform == "normalize":
        return True  # codes are what rows become at norm 1: rows put there are the codes
    if slot.transform == "made":
        return False
    norms = effective(bench, slot).double().norm(dim=1)
    return bool(((norms - 1).abs() < 1e-3).all())


def find_min_n(bench: Bench) -> tuple[int, str]:
    """The smallest number of latents with which passes in both modes work."""
    error = ""
    for n in (1, 2, 3, 4, 8, 16, 32, 64):
        z = bench.latents(n, 70)
        if bench.look(z, train=False) is not None and bench.look(z, train=True) is not None:
            return n, f"{n} latent(s) work in train and eval mode" + (f"; fewer raise {error}" if n > 1 else "")
        error = bench.trial.error or "nothing, but the shapes are wrong"
    return 1, "no number of latents works in both modes"


def _call(trial: Trial, candidate: Candidate, evidence: dict[str, str]) -> Call:
    layout = candidate.grid.layout
    codes, evidence["codes"] = find_codes(candidate)
    other = read_in_train(trial, candidate)
    if other is None:
        losses, evidence["loss"] = find_losses(trial, candidate, _taken(candidate.z_q, codes))
        return Call(layout, candidate.z_q, codes, losses)
    train_codes, evidence["codes in train"] = find_codes(other)
    losses, evidence["loss"] = find_losses(trial, other, _taken(other.z_q, train_codes))
    here = {path for path, _ in candidate.returned} - _taken(candidate.z_q, codes)
    in_both = tuple(output for output in losses if output.path in here)
    return Call(layout, candidate.z_q, codes, in_both, Call(layout, other.z_q, train_codes, losses))


def _taken(z_q: Output, codes: tuple[Output, ...]) -> set[Path]:
    return {z_q.path, *(output.path for output in codes)}
