"""A folder of results: checkpoint, curve, reproducibility card, pictures. A killed run goes on where it was."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vqverify import environment
from vqverify._version import __version__
from vqverify.files import write_atomically
from vqverify.training.measure import WATCHED
from vqverify.training.run import Curve, Run

CHECKPOINT, CURVE, CARD = "checkpoint.pt", "curve.json", "card.md"


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued."""


def resume(run: Run, folder: Path) -> bool:
    """Continue ``run`` from the folder's checkpoint; False if there is none.

    Raises:
        CheckpointError: if the file is damaged, or of another run.
        OSError: if it cannot be read.
    """
    path = folder / CHECKPOINT
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    try:
        state = torch.load(io.BytesIO(content), weights_only=True)
        run.restore(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; choose another folder or remove it") from None
    except Exception as error:  # noqa: BLE001 - a damaged file raises whatever its bytes lead to
        raise CheckpointError(f"{path} is no checkpoint of this version ({type(error).__name__}): remove it") from None
    return True


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint, then the curve that it holds; each file whole.

    Raises:
        OSError: if the folder cannot be written.
    """
    content = io.BytesIO()
    torch.save(run.state(), content)
    write_atomically(folder / CHECKPOINT, content.getvalue())
    write_atomically(folder / CURVE, dumps(run.curve()))


def dumps(curve: Curve) -> str:
    """Return a curve as JSON: the same text for the same curve; what is not finite is null."""
    values = {name: [x if math.isfinite(x) else None for x in numbers] for name, numbers in curve.values.items()}
    data = {"format": 1, "name": curve.name, "seed": curve.seed, "steps": list(curve.steps), "values": values}
    return json.dumps(data, indent=1) + "\n"


def loads(text: str) -> Curve:
    """Return the curve of :func:`dumps`.

    Raises:
        ValueError: if the text is none.
    """
    try:
        data = json.loads(text)
        numbers: Mapping[str, list[float | None]] = data["values"]
        values = {name: tuple(math.nan if x is None else float(x) for x in numbers[name]) for name in WATCHED}
        return Curve(data["name"], data["seed"], tuple(data["steps"]), values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no curve: {error}") from None


def card(run: Run, command: str) -> str:
    """Return the reproducibility card as Markdown: the variables that reviewers of papers look for.

    Args:
        run: a run.
        command: repeats it.
    """
    recipe, task, data = run.recipe, run.task, run.data
    arguments = {k: v for k, v in recipe.arguments().items() if isinstance(v, str | int | float)}
    curve = run.curve()
    found = environment.describe() | {
        name: version for name in ("scikit-learn", "matplotlib") if (version := environment.package_version(name))
    }
    hardware = {name: found.pop(name) for name in ("platform", "cpus", "device") if name in found}
    setup = {
        "steps": run.step,
        "batch": task.batch,
        "optimizer": f"Adam, rate {task.rate:g}, network and codes alike",
        "estimator": recipe.estimator,
        "codes and network": "take turns" if recipe.alternates else "in one step",
        "layer": arguments,
    }
    rows = {
        "Research type": "experimental, in miniature",
        "Pseudocode": "`vqverify/training/run.py`, `Run`",
        "Open source code": f"vqverify {__version__}; `{command}`",
        "Open datasets": f"{task.about}; ships inside a package or is generated, nothing is downloaded",
        "Dataset splits": f"{len(data.train)} examples to train on, {len(data.held_out)} held out and never trained on",
        "Hardware": _words(hardware) + "; one CPU thread",
        "Software": _words(found),
        "Experiment setup": _words(setup),
        "Randomness": f"seed {run.seed}; every draw is a function of (seed, step): a resumed run repeats bit for bit",
        "Speed": f"{curve.steps_per_second:.0f} steps a second of CPU time, measurements left out",
    }
    lines = [f"# {recipe.name}", "", "| variable | value |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    lines += ["", f"## After {run.step} steps", "", "| watched | value | what it is |", "|---|---|---|"]
    if curve.steps:
        lines += [f"| {name} | {curve.final(name):.4g} | {_cell(watch.about)} |" for name, watch in WATCHED.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _words(values: Mapping[str, Any]) -> str:
    said = (_words(v) if isinstance(v, Mapping) else str(v) for v in values.values())
    return ", ".join(f"{name} {value}" for name, value in zip(values, said, strict=True))
