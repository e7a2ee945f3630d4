"""The trainings that are watched from commit to commit, and how their curves are kept in a file."""

from __future__ import annotations

import json
from pathlib import Path

from vqverify.files import write_atomically
from vqverify.training import Curve, Recipe, train
from vqverify.training import folder as folders

SEEDS = 10
"""Pairs of the judge: 2/2¹⁰ is the least p-value, a fifth of its level."""


def watched() -> list[tuple[Recipe, int]]:
    """Every method on the quickest task, and the codebook alone with and without replacement; with their steps."""
    methods = [
        ("rotation", "ema", "euclidean"),
        ("straight-through", "ema", "euclidean"),
        ("hessian", "ema", "euclidean"),
        ("exact", "ema", "euclidean"),
        ("straight-through", "gradient", "euclidean"),
        ("straight-through", "sync", "euclidean"),
        ("straight-through", "affine", "euclidean"),
        ("straight-through", "opt", "euclidean"),
        ("rotation", "ema", "cosine"),
        ("rotation", "gradient", "cosine"),
    ]
    spiral = Recipe("spiral", "straight-through")
    return [
        *((Recipe("texture", *method), 160) for method in methods),
        (spiral, 240),
        (spiral.with_changes("replaced", replacement=20), 240),
    ]


def curves(seeds: int = SEEDS) -> list[Curve]:
    """Train all that is watched."""
    return [train(recipe, seed, steps=steps) for recipe, steps in watched() for seed in range(seeds)]


def save(found: list[Curve], path: Path) -> None:
    """Write curves as JSON, whole or not at all."""
    data = {"format": 1, "curves": [json.loads(folders.dumps(curve)) for curve in found]}
    write_atomically(path, json.dumps(data) + "\n")


def load(path: Path) -> list[Curve]:
    """Read the curves that :func:`save` wrote.

    Raises:
        ValueError: if the file holds none.
    """
    data = json.loads(path.read_text("utf-8"))
    if not isinstance(data, dict) or "curves" not in data:
        raise ValueError(f"{path} holds no curves")
    return [folders.loads(json.dumps(one)) for one in data["curves"]]
