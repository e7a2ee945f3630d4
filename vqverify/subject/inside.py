"""A layer inside a user's own model: the state of the model, the place of the layer, the latents that it meets."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqverify.bounds import Violation
from vqverify.subject.plan import TOKENS, gather
from vqverify.subject.target import TargetError, suggest

PREFIXES = ("module.", "_orig_mod.", "model.")  # what wrappers (data parallel, a compiler, a trainer) put before names


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path of a model.

    Raises:
        TargetError: if there is none; the message names those that come near.
    """
    named = dict(model.named_modules())
    if path not in named or not path:
        names = [name for name in named if name]
        raise TargetError(f"--submodule: {type(model).__name__} has no module {path!r}{suggest(path, names)}")
    return named[path]


def load_state(model: nn.Module, path: str) -> None:
    """Load a checkpoint's state_dict into a model, all of it; `weights_only`, so that no code of the file runs.

    Args:
        model: of the same construction as the one that was saved.
        path: of a file that `torch.save` wrote: a state_dict, or a mapping that holds one.

    Raises:
        TargetError: if the file cannot be read or holds no state that fits.
    """
    shown = f"--state {path}"
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TargetError(f"{shown} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise TargetError(
            f"{shown} is no file of tensors alone: a state_dict is needed, as torch.save(model.state_dict(), FILE) writes it"
        ) from error
    wanted = set(model.state_dict())
    found = _state(held, wanted)
    if found is None:
        kind = type(held).__name__
        raise TargetError(
            f"{shown} holds no state_dict of {type(model).__name__}: it is a {kind} without tensors by name"
        )
    missing, more = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if missing or more:
        parts = [f"{word} {', '.join(names[:3])}{' …' * (len(names) > 3)}" for word, names in _words(missing, more)]
        raise TargetError(f"{shown} does not fit {type(model).__name__}: {' and '.join(parts)}")
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).split("\n") if line.strip()]
        raise TargetError(f"{shown} does not fit {type(model).__name__}: {lines[-1][:200]}") from error


def _words(missing: list[str], more: list[str]) -> list[tuple[str, list[str]]]:
    return [(word, names) for word, names in (("it lacks", missing), ("it has the unknown", more)) if names]


def _state(held: Any, wanted: set[str], depth: int = 0) -> dict[str, Tensor] | None:
    """The mapping of tensors by name that has most of the wanted names, in what a file holds."""
    if not isinstance(held, Mapping) or depth > 2:
        return None
    found: list[dict[str, Tensor]] = []
    if held and all(isinstance(key, str) for key in held) and any(isinstance(value, Tensor) for value in held.values()):
        tensors = {key: value for key, value in held.items() if isinstance(value, Tensor)}
        found.append(tensors)
        found += [_bare(tensors, prefix) for prefix in PREFIXES if all(key.startswith(prefix) for key in tensors)]
    found += [inner for value in held.values() if (inner := _state(value, wanted, depth + 1)) is not None]
    return max(found, key=lambda state: len(wanted & set(state)), default=None)


def _bare(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items()}


def load_latents(path: str, dim: int, layout: str, dtype: torch.dtype) -> Tensor:
    """Latents that a layer meets in use, as rows.

    Args:
        path: of a .npy file of floats: (N, D), or the layer's own input layout.
        dim: D.
        layout: the layer's first input layout, for arrays with as many axes.
        dtype: to give them.

    Returns:
        (N, D), finite.

    Raises:
        TargetError: if the file cannot be read, or its shape or numbers are none of latents.
    """
    shown = f"--latents {path}"
    try:
        held = np.load(Path(path), allow_pickle=False)
    except OSError as error:
        raise TargetError(f"{shown} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise TargetError(f"{shown} is no .npy file of numbers: {str(error).split(chr(10))[0][:120]}") from error
    if not isinstance(held, np.ndarray) or held.dtype.kind != "f":
        what = f"an array of {held.dtype}" if isinstance(held, np.ndarray) else f"a {type(held).__name__}"
        raise TargetError(f"{shown} holds {what}; floats are needed")
    form = layout if held.ndim == len(layout) else "ND" if held.ndim == 2 else ""
    axis = form.find("D")
    if not form or held.shape[axis] != dim or not held.size:
        raise TargetError(
            f"{shown} has shape {held.shape}; (N, {dim}) with N ≥ 1 is needed, or the layer's layout {layout}"
        )
    if not np.isfinite(held).all():
        raise TargetError(f"{shown} holds NaN or infinity")
    tensor = torch.from_numpy(np.ascontiguousarray(held)).to(dtype)
    size = {letter: length for letter, length in zip(form, held.shape, strict=True) if letter in TOKENS}
    try:
        return gather(tensor, form, size)
    except Violation as violation:
        raise TargetError(f"{shown}: {violation.message}") from violation
