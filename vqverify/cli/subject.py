"""The options that name a subject, shared by the commands that open one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from vqverify.cli import words
from vqverify.cli.types import SEED

if TYPE_CHECKING:
    from vqverify.quantizer import Spec

REFERENCE = "vqverify.reference:VectorQuantizer"
REFERENCE_KWARGS = {"dim": 8, "codebook_size": 16}

_OPTIONS = (
    click.argument("target", required=False),
    click.option(
        "--kw",
        "kw",
        multiple=True,
        metavar="NAME=VALUE",
        help="A constructor argument; the value is JSON, else a string.",
    ),
    click.option("--kwargs", "kwargs", metavar="JSON", help="Constructor arguments as one JSON object."),
    click.option(
        "--claim",
        "claim",
        multiple=True,
        metavar="NAME=VALUE",
        help="What the layer says it is, as estimator=rotation.",
    ),
    click.option("--adapter", metavar="MOD:OBJ", help="How to call the layer, where discovery is not enough."),
    click.option(
        "--as",
        "role",
        type=click.Choice(["layer", "estimator", "lookup"]),
        default="layer",
        show_default=True,
        help="A layer, a bare estimator (z, q) -> z_q, or a bare lookup (z, codebook) -> codes.",
    ),
    click.option("--submodule", metavar="PATH", help="The layer's place in the model that TARGET builds: encoder.vq."),
    click.option("--state", metavar="FILE", help="A state_dict to load into what TARGET builds."),
    click.option("--latents", metavar="FILE", help="Latents that the layer meets in use: a .npy file, (N, D)."),
    click.option("--device", metavar="NAME", help="Move the layer there, as cuda."),
    click.option("--dtype", metavar="NAME", help="Cast the layer, and give it latents, in this dtype."),
    click.option(
        "--seed",
        type=SEED,
        help="Seed of construction and search.  [default: 0; nightly: drawn]",
    ),
    click.option("--traceback", is_flag=True, help="Show where an error comes from."),
)


def subject_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add TARGET and the options that say how to build it."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def spec_of(given: Mapping[str, Any], seed: int) -> Spec:
    """The subject that the options name; without TARGET the reference layer.

    Raises:
        UsageError: if an option cannot be read.
    """
    from vqverify.quantizer import Spec

    target: str | None = given["target"]
    kwargs = words.json_object(given["kwargs"], "--kwargs") | words.assignments(given["kw"], "--kw")
    if target is None:
        for name in ("submodule", "state"):
            if given[name]:
                raise click.UsageError(f"--{name} needs a TARGET that builds the model, such as my_model.py:Model")
        if given["role"] != "layer":
            raise click.UsageError(f"--as {given['role']} needs a TARGET such as my_estimator.py:rotate")
        target, kwargs = REFERENCE, REFERENCE_KWARGS | kwargs
    claims = words.assignments(given["claim"], "--claim")
    places = {name: given[name] for name in ("dtype", "device", "submodule", "state", "latents")}
    return Spec(target, kwargs, claims, given["role"], given["adapter"], seed, **places)
