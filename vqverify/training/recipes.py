"""What is trained: a task (data and network) and a method (estimator, codebook, metric), each by name."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vqverify.reference import VectorQuantizer
from vqverify.training import data
from vqverify.training.models import Bare, ConvAutoencoder, MLPAutoencoder, Model, SlotAutoencoder


@dataclass(frozen=True)
class Task:
    """Data and a network.

    Attributes:
        about: one line for a reader.
        data: makes the data.
        model: makes the network around a quantizer of ``dim`` channels; draws from the global generator.
        dim: D of the latents.
        codebook_size: K.
        batch: examples a step.
        rate: of Adam, for network and codes alike.
        steps: of a full run.
        initialisation: of the codes, as in :class:`vqverify.reference.VectorQuantizer`.
    """

    about: str
    data: Callable[[], data.Data]
    model: Callable[[int], Model]
    dim: int
    codebook_size: int
    batch: int
    rate: float = 2e-3
    steps: int = 1000
    initialisation: str = "kmeans"


TASKS: Mapping[str, Task] = {
    "photographs": Task(
        "patches of two photographs, 16 x 16 x 3; conv VQ-VAE, 4 x 4 latents",
        data.photographs,
        lambda dim: ConvAutoencoder(3, dim, width=32, halvings=2),
        dim=8,
        codebook_size=256,
        batch=32,
        steps=3000,
    ),
    "digits": Task(
        "handwritten digits, 8 x 8; conv VQ-VAE, 4 x 4 latents",
        data.digits,
        lambda dim: ConvAutoencoder(1, dim),
        dim=8,
        codebook_size=64,
        batch=32,
    ),
    "texture": Task(
        "generated gratings, 8 x 8; dense VQ-VAE, 4 latents: the quickest",
        data.texture,
        lambda dim: SlotAutoencoder(8, dim),
        dim=8,
        codebook_size=32,
        batch=32,
    ),
    "mixture": Task(
        "16 normal distributions in the plane; MLP, one latent a point",
        data.mixture,
        lambda dim: MLPAutoencoder(2, dim),
        dim=4,
        codebook_size=64,
        batch=256,
    ),
    "spiral": Task(
        "points along a spiral; no network, the codebook alone",
        data.spiral,
        lambda dim: Bare(),  # noqa: ARG005 - the points are the latents
        dim=2,
        codebook_size=128,
        batch=64,
        initialisation="normal",
    ),
}

ESTIMATORS = ("straight-through", "rotation", "hessian", "exact")
METRICS = ("euclidean", "cosine")
CODEBOOKS: Mapping[str, Mapping[str, Any]] = {
    "ema": {"learning": "ema", "decay": 0.9},
    "gradient": {"learning": "gradient"},
    "sync": {"learning": "gradient", "synchronized": 1.0},
    "affine": {"learning": "gradient", "affine": "learnable"},
    "opt": {"learning": "gradient"},
    "affine-opt-sync": {"learning": "gradient", "affine": "learnable", "synchronized": 1.0},
}
"""How the codes learn: the arguments of :class:`vqverify.reference.VectorQuantizer`."""


class UnknownRecipeError(ValueError):
    """No recipe, task or method has this name."""


@dataclass(frozen=True)
class Recipe:
    """One training, but for its seed.

    Attributes:
        task: a name of :data:`TASKS`.
        estimator: of :data:`ESTIMATORS`; ``"hessian"`` and ``"exact"`` hand the encoder another gradient than the
            layer does (:func:`vqverify.reference.hessian_gradient`, :func:`~vqverify.reference.exact_gradient`).
        codebook: of :data:`CODEBOOKS`; those with ``opt`` alternate: a step of the codes on fixed latents, then one
            of the network (Huh et al. 2023, eq. 17-18).
        metric: of :data:`METRICS`.
        changes: more arguments of :class:`vqverify.reference.VectorQuantizer`, or other values for them.
        label: a name of its own, for a recipe with ``changes``.

    Raises:
        UnknownRecipeError: if a name is unknown.
    """

    task: str
    estimator: str = "rotation"
    codebook: str = "ema"
    metric: str = "euclidean"
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    label: str = ""

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("task", self.task, TASKS),
            ("estimator", self.estimator, ESTIMATORS),
            ("codebook", self.codebook, CODEBOOKS),
            ("metric", self.metric, METRICS),
        ):
            if value not in known:
                raise UnknownRecipeError(f"{kind} must be one of {', '.join(known)}; it was {value!r}")

    @property
    def name(self) -> str:
        """The name by which :func:`named` finds it, and the label if it has one."""
        metric = "-cosine" if self.metric == "cosine" else ""
        label = f" {self.label}" if self.label else ""
        return f"{self.task}-{self.estimator}-{self.codebook}{metric}{label}"

    @property
    def alternates(self) -> bool:
        """Whether codes and network take turns."""
        return "opt" in self.codebook.split("-")

    def with_changes(self, label: str, **changes: Any) -> Recipe:
        """Return the recipe with other arguments for the layer."""
        return replace(self, label=label, changes={**self.changes, **changes})

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the layer."""
        task = TASKS[self.task]
        inner = self.estimator if self.estimator in {"straight-through", "rotation"} else "straight-through"
        return {
            "dim": task.dim,
            "codebook_size": task.codebook_size,
            "estimator": inner,
            "metric": self.metric,
            "initialisation": task.initialisation,
            **CODEBOOKS[self.codebook],
            **self.changes,
        }

    def layer(self) -> VectorQuantizer:
        """Build the layer; draws its codes from the global generator."""
        return VectorQuantizer(**self.arguments())


def recipes() -> dict[str, Recipe]:
    """Return every combination that makes sense, by name."""
    found: dict[str, Recipe] = {}
    for task, estimator, codebook, metric in itertools.product(TASKS, ESTIMATORS, CODEBOOKS, METRICS):
        if metric == "cosine" and "affine" in codebook:
            continue  # an affine map takes codes off the sphere
        if task == "spiral" and (estimator != "straight-through" or metric == "cosine" or codebook == "sync"):
            continue  # without an encoder no gradient passes the quantizer
        recipe = Recipe(task, estimator, codebook, metric)
        found[recipe.name] = recipe
    return found


def named(name: str) -> Recipe:
    """Return a recipe by its name; a task alone stands for its rotation (or only) estimator with an EMA codebook.

    Raises:
        UnknownRecipeError: with the nearest names, if there is none.
    """
    known = recipes()
    if name in TASKS:
        return Recipe(name, "straight-through" if name == "spiral" else "rotation")
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *TASKS], n=3, cutoff=0.4)
        said = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(TASKS)} and more"
        raise UnknownRecipeError(f"there is no training {name!r}; {said}")
    return known[name]
