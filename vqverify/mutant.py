"""Wrong quantizers: each re-enacts a mistake that was made, and must be rejected through the front door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

SUBJECTS = (
    "rotation", "lookup", "estimator", "loss", "update", "interface",
    "interface_purity", "interface_batching", "interface_lifecycle", "interface_precision", "stochastic", "residual",
    "scalar", "structure", "metrics", "update_state", "update_hull", "update_learnt", "lookup_cells",
    "cosine", "loss_limits", "estimator_paths", "entropy", "residual_scales", "update_start",
    "gap", "update_affine", "update_distributed",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """An ordinary layer with one mistake, nothing declared but ordinary kwargs.

    Attributes:
        name: stable; invariants refer to it.
        target: how `vqverify check` finds it.
        kwargs: ordinary constructor arguments.
        names: ids of the invariants that name the cause; one of them must be among the failed rows.
        mistake: what is wrong, one sentence.
        reference: where this was really done, or the systematic mutation that it is.
        profile: the shortest in which the row that names it is checked.
        role: `layer`, or `estimator` for a bare function.
    """

    name: str
    target: str
    names: tuple[str, ...]
    mistake: str
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reference: str = ""
    profile: str = "quick"
    role: Literal["layer", "estimator"] = "layer"


def mutants() -> dict[str, Mutant]:
    """Every mutant by name; each module of `vqverify.mutants` lists its own in `MUTANTS`."""
    found: dict[str, Mutant] = {}
    for subject in SUBJECTS:
        for mutant in import_module(f"vqverify.mutants.{subject}").MUTANTS:
            if mutant.name in found:
                raise ValueError(f"mutant {mutant.name!r} is listed twice")
            found[mutant.name] = mutant
    return found
