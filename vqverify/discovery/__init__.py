"""Finding how to call a layer, by shapes and behaviour alone: no name of an attribute or a library counts."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vqverify.discovery.bench import Bench
from vqverify.discovery.codebook import effective, find_codebook
from vqverify.discovery.decoders import find_decoders, public_methods
from vqverify.discovery.errors import DiscoveryError, undiscovered
from vqverify.discovery.forms import grid, integers
from vqverify.discovery.layouts import Candidate, candidates, read
from vqverify.discovery.outputs import find_codes, find_losses
from vqverify.discovery.training import find_accumulators, find_warm
from vqverify.discovery.trial import Trial
from vqverify.plan import Call, Output, Plan, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DiscoveryError", "discover"]


def discover(
    module: nn.Module, factory: Callable[..., Any], kwargs: Mapping[str, Any], *, dtype: torch.dtype
) -> Plan:
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


def _discover(
    trial: Trial, factory: Callable[..., Any], kwargs: Mapping[str, Any], dtype: torch.dtype
) -> Plan:
    dims, avoid = integers(trial.module, factory, kwargs)
    found = _settle(trial, dims, avoid, dtype)
    raised = trial.error
    if not found and (_forward_missing(trial.module) or raised.startswith("NotImplementedError")):
        for method in public_methods(trial.module, 1):
            trial.method = method
            found = _settle(trial, dims, avoid, dtype)
            if found:
                break
    if not found:
        return _nothing(trial, dims, raised)
    evidence = _evidence(found)
    first = found[0]
    plan = Plan(first.grid.dim, (Call(first.grid.layout, first.z_q),), method=trial.method)
    bench = Bench(trial, plan, dtype, train=first.train)
    warm, evidence["warm"] = find_warm(bench, leaked=first.warm)
    if warm:
        found = [read(trial, candidate.grid, dtype) or candidate for candidate in found]
        first = found[0]
        evidence |= _evidence(found)
    calls = tuple(_call(trial, candidate, evidence if candidate is first else {}) for candidate in found)
    bench.plan = replace(plan, calls=calls, warm=warm)
    look = bench.tune()
    if look is not None:
        slots, evidence["codebook"] = find_codebook(bench, look)
        sphere = bool(slots) and all(_on_sphere(bench, slot) for slot in slots)
        bench.plan = replace(bench.plan, slots=slots, sphere=sphere)
        accumulators, evidence["accumulators"] = find_accumulators(bench)
        decoders, evidence["decoders"] = find_decoders(bench, look)
        bench.plan = replace(bench.plan, accumulators=accumulators, decoders=decoders)
    min_n, evidence["min_n"] = find_min_n(bench)
    return replace(bench.plan, min_n=min_n, evidence=evidence)


def _on_sphere(bench: Bench, slot: Slot) -> bool:
    if slot.transform != "identity":
        return False
    norms = effective(bench, slot).double().norm(dim=1)
    return bool(((norms - 1).abs() < 1e-3).all())


def find_min_n(bench: Bench) -> tuple[int, str]:
    """The smallest number of latents with which passes in both modes work."""
    error = ""
    for n in (1, 2, 3, 4, 8, 16, 32, 64):
        z = bench.latents(n, 70)
        if bench.look(z, train=False) is not None and bench.look(z, train=True) is not None:
            return n, f"{n} latent(s) work in train and eval mode" + (
                f"; fewer raise {error}" if n > 1 else ""
            )
        error = bench.trial.error or "nothing, but the shapes are wrong"
    return 1, "no number of latents works in both modes"


def _forward_missing(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward


def _settle(trial: Trial, dims: list[int], avoid: set[int], dtype: torch.dtype) -> list[Candidate]:
    """The accepted layouts at the right D, the one to use first in front."""
    every: list[Candidate] = []
    local: dict[int, list[Candidate]] = {}
    roughly: dict[int, list[Candidate]] = {}
    for dim in dims:
        # a multiple of D passes `view(-1, D)` too, so that only divisors of what was found are worth trying
        if local and not any(known % dim == 0 and known != dim for known in local):
            continue
        for candidate in candidates(trial, [dim], avoid, dtype):
            every.append(candidate)
            if candidate.leak == 0 and candidate.reach > 0:
                local.setdefault(dim, []).append(candidate)
            elif candidate.spill == 0 and candidate.reach > 0 and candidate.trains:
                roughly.setdefault(dim, []).append(candidate)
    local = local or roughly
    if local:
        dim = min(local)
        if len(local) > 1 and _is_free(trial, local[dim][0], dims, avoid, dtype):
            dim = next(iter(local))
        chosen = local[dim]
        if any(candidate.codes for candidate in chosen):
            chosen = [candidate for candidate in chosen if candidate.codes]
        if any("1" not in candidate.z_q.form for candidate in chosen):
            chosen = [candidate for candidate in chosen if "1" not in candidate.z_q.form]
        return [candidate for candidate in chosen if candidate.train == chosen[0].train]
    return sorted(every, key=Candidate.rank)[:1]


def _is_free(trial: Trial, like: Candidate, dims: list[int], avoid: set[int], dtype: torch.dtype) -> bool:
    """Whether any D will do."""
    odd = next(value for value in (9, 10, 14, 15, 21, 22, 25, 27, 33) if value not in dims)
    found = read(trial, grid(like.grid.layout, odd, avoid), dtype)
    return found is not None and found.leak == 0


def _call(trial: Trial, candidate: Candidate, evidence: dict[str, str]) -> Call:
    codes, evidence["codes"] = find_codes(candidate)
    taken = {candidate.z_q.path, *(output.path for output in codes)}
    losses, evidence["loss"] = find_losses(trial, candidate, taken)
    return Call(candidate.grid.layout, candidate.z_q, codes, losses)


def _evidence(found: list[Candidate]) -> dict[str, str]:
    best = found[0]
    names = ", ".join(candidate.grid.layout for candidate in found)
    text = f"{names} with D = {best.grid.dim}: "
    if best.leak:
        little = ", though little" if not best.spill else ""
        text += (
            f"the right shape, but replacing one latent changed {best.leak:.0%} of the other places{little}"
        )
    else:
        text += (
            "replacing one latent changes no other place of the output"
            if best.reach
            else "no input changes the output"
        )
    place = ".".join(map(str, best.z_q.path)) or "the output itself"
    constant = (
        "piecewise constant"
        if best.constant >= 0.9
        else f"NOT piecewise constant ({best.constant:.0%} of latents)"
    )
    value = dict(best.returned)[best.z_q.path]
    finite = "" if bool(value.isfinite().all()) else ", NOT finite"
    finite += "" if best.repeats else ", two equal calls differ"
    reached = "a gradient reaches z" if best.attached else "no gradient reaches z"
    return {"layout": text, "z_q": f"{place} of shape {tuple(value.shape)}: {constant}{finite}, {reached}"}


def _nothing(trial: Trial, dims: list[int], raised: str) -> Plan:
    name = type(trial.module).__name__
    if trial.calls > trial.raised:
        raise undiscovered(
            f"{name} returns no tensor of its input's size, so that no output can be z_q",
            dims[0] if dims else None,
        )
    required = [
        key
        for key, value in list(inspect.signature(trial.module.forward).parameters.items())[1:]
        if value.default is value.empty and value.kind in {value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY}
    ]
    if required:
        raise undiscovered(
            f"{name}.forward needs {', '.join(required)} besides the latents", dims[0] if dims else None
        )
    call = Call("BND", Output((), "BND"))
    trial.method = "__call__"
    return Plan(
        dim=dims[0] if dims else 4,
        calls=(call,),
        evidence={"call": f"every call raised, the last one {raised}"},
    )
