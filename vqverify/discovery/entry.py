"""Which method makes a pass, with which arguments, at which D and in which layouts."""

from __future__ import annotations

import inspect
import itertools
from typing import TYPE_CHECKING, NoReturn

from torch import nn

from vqverify.discovery.decoders import public_methods
from vqverify.discovery.errors import DiscoveryError, undiscovered
from vqverify.discovery.forms import LAYOUTS, even_grid, grid
from vqverify.discovery.layouts import Candidate, candidates, read
from vqverify.discovery.measure import latents
from vqverify.subject.plan import Second

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from vqverify.discovery.trial import Trial

MOST = 4  # public methods of which pairs are tried
GUESSES = (
    50,
    1,
    1.0,
    None,
    False,
)  # for arguments that a pass needs besides the latents: rates, flags, options


def find_calls(
    trial: Trial, dims: list[int], avoid: set[int], dtype: torch.dtype
) -> tuple[list[Candidate], dict[str, str]]:
    """The accepted layouts, the one to use first in front, with the evidence; sets the trial's method.

    Returns:
        An empty list if the pass is known and raises whatever it is given; `evidence["call"]` says what.

    Raises:
        DiscoveryError: if passes work without a z_q, or need arguments that cannot be guessed.
    """
    required = _required(trial.module)
    found: list[Candidate] = []
    guess: object = None
    for guess in GUESSES if required else (None,):
        trial.arguments = dict.fromkeys(required, guess)
        found = _settle(trial, dims, avoid, dtype)
        if found:
            break
    raised = trial.error
    if not found and (type(trial.module).forward is nn.Module.forward or raised.startswith("NotImplementedError")):
        trial.arguments = {}
        for method, then in _methods(trial.module):
            trial.method, trial.then = method, then
            found = _settle(trial, dims, avoid, dtype)
            if found:
                break
    if found:
        _refuse_other_width(trial, found, dims, avoid, dtype)
        more = {"arguments": f"a pass needs {', '.join(required)}, guessed {guess!r}"} if trial.arguments else {}
        return found, describe(found) | more
    if trial.calls > trial.raised or required:
        _give_up(trial, dims, required)
    for dim in dims:
        for layout in LAYOUTS:
            even = even_grid(layout, dim)
            if read(trial, even, dtype) is not None and read(trial, grid(layout, dim, avoid), dtype) is None:
                sizes = ", ".join(f"{letter}={size}" for letter, size in even.size.items())
                name = type(trial.module).__name__
                reason = f"{name} takes {layout} with {sizes} but not any number of latents ({trial.error})"
                raise undiscovered(reason, dim)
    trial.method, trial.then = "__call__", None
    for dim in _other_sizes(dims):
        if read(trial, grid("BND", dim, avoid), dtype) or read(trial, grid("BDN", dim, avoid), dtype):
            found = _settle(trial, [dim], avoid, dtype)
            return found, describe(found)
    return [], {"call": f"every call raised, the last one {raised}"}


def _refuse_other_width(
    trial: Trial, found: list[Candidate], dims: list[int], avoid: set[int], dtype: torch.dtype
) -> None:
    """Give up where no reading found works in train mode and another D does: then z_q has not the latents' size.

    Raises:
        DiscoveryError: in that case. A layer that raises in train whatever it is given stays as it was found.
    """
    if any(candidate.trains for candidate in found):
        return
    for dim in dims:
        for layout in {candidate.grid.layout for candidate in found} if dim != found[0].grid.dim else ():
            where = grid(layout, dim, avoid)
            trial.returned = ""
            if trial.run(where.put(latents(where.n, dim, dtype, 3)), train=True) is not None:
                name = type(trial.module).__name__
                reason = f"{name} returned {trial.returned} in train mode: nothing of its input's size, to be z_q"
                raise undiscovered(reason, dim)


def _methods(module: nn.Module) -> Iterator[tuple[str, Second | None]]:
    """Methods that may make a pass; then pairs of them, the first of latents into codes, the second back."""
    names = list(public_methods(module, 1))
    yield from ((name, None) for name in names)
    for first, second in itertools.permutations(names[:MOST], 2):
        yield from ((first, Second(second, swapped)) for swapped in (False, True))


def _other_sizes(dims: list[int]) -> list[int]:
    """Where no size that the layer names is D: products of two of them, then small numbers."""
    products = [a * b for index, a in enumerate(dims) for b in dims[index + 1 :] if a * b <= 1024]
    return [dim for dim in dict.fromkeys([*products, *range(1, 65)]) if dim not in dims]


def _required(module: nn.Module) -> list[str]:
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    kinds = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    return [value.name for value in parameters if value.default is value.empty and value.kind in kinds]


def _give_up(trial: Trial, dims: list[int], required: list[str]) -> NoReturn:
    name = type(trial.module).__name__
    if required:
        reason = f"{name}.forward needs {', '.join(required)} besides the latents, and no guess works"
    elif trial.integers and trial.arrays:
        hint = "where z_q has another width, check the quantizer inside, --submodule"
        reason = f"{name} returned {trial.returned}: nothing of its input's size, to be z_q ({hint})"
    elif trial.integers:
        reason = f"{name} returned {trial.returned}: nothing of its input's size, so these are codes without a z_q"
    else:
        reason = f"{name} returned {trial.returned}: a tensor of its input's size is needed, to be z_q"
        if not trial.arrays:  # no adapter could find one
            raise DiscoveryError(reason)
    raise undiscovered(reason, dims[0] if dims else None)


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
            if candidate.leak == 0 and candidate.reach > 0 and not candidate.reshapes:
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
            ends = {candidate.grid.layout.endswith("D") for candidate in chosen if candidate.steady}
            # codes tell on which side the features are; with them there, codes that land elsewhere are a mistake to report
            chosen = [c for c in chosen if c.codes and (not ends or c.grid.layout.endswith("D") in ends)]
            chosen.sort(key=lambda candidate: bool(ends) and not candidate.steady)
        if any("1" not in candidate.z_q.form for candidate in chosen):
            chosen = [candidate for candidate in chosen if "1" not in candidate.z_q.form]
        return [candidate for candidate in chosen if candidate.train == chosen[0].train]
    return sorted(every, key=Candidate.rank)[:1]


def _is_free(trial: Trial, like: Candidate, dims: list[int], avoid: set[int], dtype: torch.dtype) -> bool:
    """Whether any D will do."""
    odd = next(value for value in (9, 10, 14, 15, 21, 22, 25, 27, 33) if value not in dims)
    found = read(trial, grid(like.grid.layout, odd, avoid), dtype)
    return found is not None and found.leak == 0


def describe(found: list[Candidate]) -> dict[str, str]:
    """Evidence of layout and z_q."""
    best = found[0]
    names = ", ".join(candidate.grid.layout for candidate in found)
    text = f"{names} with D = {best.grid.dim}: "
    if best.leak:
        little = ", though little" if not best.spill else ""
        text += f"the right shape, but replacing one latent changed {best.leak:.0%} of the other places{little}"
    else:
        text += (
            "replacing one latent changes no other place of the output" if best.reach else "no input changes the output"
        )
    place = ".".join(map(str, best.z_q.path)) or "the output itself"
    constant = (
        "piecewise constant" if best.constant >= 0.9 else f"NOT piecewise constant ({best.constant:.0%} of latents)"
    )
    value = dict(best.returned)[best.z_q.path]
    finite = "" if best.finite else ", NOT finite"
    finite += "" if best.repeats else ", two equal calls differ"
    reached = "a gradient reaches z" if best.attached else "no gradient reaches z"
    return {"layout": text, "z_q": f"{place} of shape {tuple(value.shape)}: {constant}{finite}, {reached}"}
