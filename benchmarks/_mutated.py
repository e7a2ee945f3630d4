"""Mutants and their right counterparts as layers to train: same sizes, same first codes."""

from __future__ import annotations

import importlib
import inspect
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqverify.mutant import Mutant, mutants
from vqverify.mutants.base import DictLayer
from vqverify.mutants.loss import AfterPatch, WeightsExchanged

if TYPE_CHECKING:
    from vqverify.training.run import Builder

WIDTHS = ("dim", "embedding_dim", "num_hiddens")
SIZES = ("codebook_size", "num_embeddings", "num_codes", "n_embed")
WHOLE = {AfterPatch: DictLayer, WeightsExchanged: DictLayer}
"""Mutants that override no right layer, with the one that computes what they should."""

BESIDES = {"init_flag_lost", "starts_in_eval", "scale_kept_in_self", "residual_rotation_detached"}
"""Mutants whose class does something right that its parent does not (a start from data, another estimator), without
which there would be nothing to get wrong: a training would see that, and not the mistake."""


@dataclass(frozen=True)
class Layer:
    """A layer of given sizes.

    Attributes:
        kind: its class.
        arguments: of the constructor.
        size: number of its codes.
    """

    kind: type[nn.Module]
    arguments: dict[str, Any]
    size: int

    def builder(self) -> Builder:
        """Return what builds it, its codes being latents of the untrained network."""

        def build(z: Tensor) -> nn.Module:
            rows = z[torch.randperm(len(z))]
            start = rows[torch.arange(self.size) % len(rows)] + 0.05 * torch.randn(self.size, z.shape[1])
            layer = self.kind(**self.arguments)
            with torch.no_grad():
                for value in layer.state_dict().values():
                    if value.shape == start.shape:
                        value.copy_(start)
            return layer

        return build


def layer(kind: type[nn.Module], given: dict[str, Any], dim: int, size: int) -> Layer:
    """Return a class as a layer of other sizes: by the names that the field gives to D and K."""
    names = set(inspect.signature(kind).parameters)
    arguments = {name: value for name, value in given.items() if name in names}
    arguments |= dict.fromkeys(names & set(WIDTHS), dim)
    arguments |= dict.fromkeys(names & set(SIZES), size)
    if "levels" in names:
        arguments["levels"] = [4, 3, *[2] * dim][:dim]
    if not names & set(SIZES):
        size = math.prod(arguments.get("levels", [2] * dim))
    return Layer(kind, arguments, size)


def layers() -> list[Mutant]:
    """Return the mutants that are layers, and no bare estimators."""
    return [mutant for mutant in mutants().values() if mutant.role == "layer"]


@cache
def kinds() -> dict[str, type[nn.Module]]:
    """Every mutant's class by the mutant's name."""
    found = {}
    for mutant in layers():
        module, _, name = mutant.target.partition(":")
        found[mutant.name] = getattr(importlib.import_module(module), name)
    return found


def counterpart(mutant: Mutant) -> type[nn.Module] | None:
    """Return the nearest right layer that a mutant overrides; None where there is none, or it is not comparable."""
    if mutant.name in BESIDES:
        return None
    kind, wrong = kinds()[mutant.name], set(kinds().values())
    if kind in WHOLE:
        return WHOLE[kind]
    home = kind.__module__.rpartition(".")[0]
    return next((one for one in kind.__mro__[1:] if one not in wrong and one.__module__.startswith(home)), None)
