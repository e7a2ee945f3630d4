"""`vqverify compare`: the smallest input on which two layers differ, or none found."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vqverify.cli import outputs, words
from vqverify.cli.types import FILE, SEED

if TYPE_CHECKING:
    from vqverify.quantizer import Spec
    from vqverify.run.compare import Against

ASPECTS = "value,codes,gradient,loss,state"


@click.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="[B]", required=False)
@click.option("--kw", multiple=True, metavar="NAME=VALUE", help="A constructor argument of both; JSON, else a string.")
@click.option("--kw-a", multiple=True, metavar="NAME=VALUE", help="A constructor argument of A.")
@click.option("--kw-b", multiple=True, metavar="NAME=VALUE", help="A constructor argument of B.")
@click.option("--adapter-a", metavar="MOD:OBJ", help="How to call A, where discovery is not enough.")
@click.option("--adapter-b", metavar="MOD:OBJ", help="How to call B, where discovery is not enough.")
@click.option("--dtype-b", metavar="NAME", help="Cast B; bounds are then those of the coarser precision.")
@click.option("--device-b", metavar="NAME", help="Move B there, as cuda.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the passes of B with torch.compile.")
@click.option("--python-b", metavar="PATH", help="Run B in another interpreter, with its own release of a library.")
@click.option("--only", default=ASPECTS, show_default=True, metavar="ASPECTS", help="What to compare.")
@click.option("--profile", default="quick", show_default=True, metavar="NAME", help="quick, merge or nightly.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of constructions and search.")
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="As data.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def command(**given: Any) -> int:
    """Find the smallest input on which two layers differ in value, codes, gradient, loss or state after a step.

    A is taken to be right: bounds come from its rounding. Without B the layer is compared with itself, under
    --compile, --dtype-b, --device-b or --python-b. Exit 0: no difference was found, 1: they differ, 2: a bad command.
    """
    from vqverify.run.compare import Against, compare
    from vqverify.subject import open_subject

    with words.refusing(traceback=given["traceback"]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        aspects = _aspects(given["only"])
        first, second = _specs(given)
        against = Against(second, given["python_b"], given["compiled"])
        layer = open_subject(first)
        with against.opened() as side:
            found = compare(layer, side, profile=given["profile"], aspects=aspects)
    data = {
        "format": 1,
        "a": asdict(first),
        "b": asdict(against),
        "examples": found.examples,
        "deviations": found.deviations,
        "left_out": found.left_out,
        "differences": [
            {"label": one.label, "mode": one.mode, "message": one.message, "witness": _witness(one.witness, against)}
            for one in found.differences
        ],
    }
    if given["json_file"]:
        outputs.write_data(given["json_file"], data)
    from vqverify.render import compared

    outputs.printed(compared.render(data))
    return int(bool(found.differences))


def _aspects(text: str) -> tuple[str, ...]:
    known = ASPECTS.split(",")
    named = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in named:
        if word not in known:
            raise click.UsageError(f"--only: {word!r} is nothing to compare{words.near(word, known)}")
    if not named:
        raise click.UsageError(f"--only needs some of {ASPECTS}")
    return named


def _specs(given: dict[str, Any]) -> tuple[Spec, Spec]:
    from vqverify.quantizer import Spec

    changed = any(given[name] for name in ("kw_b", "dtype_b", "device_b", "compiled", "python_b"))
    if given["b"] is None and not changed:
        raise click.UsageError(
            "compare needs B, or what is different about it: --kw-b, --compile, --dtype-b, --python-b"
        )
    if given["python_b"] and given["compiled"]:
        raise click.UsageError("--compile and --python-b do not go together")
    shared = words.assignments(given["kw"], "--kw")
    kwargs = [shared | words.assignments(given[f"kw_{side}"], f"--kw-{side}") for side in "ab"]
    a = Spec(given["a"], kwargs[0], adapter=given["adapter_a"], seed=given["seed"])
    b = Spec(
        given["b"] or given["a"], kwargs[1], adapter=given["adapter_b"], seed=given["seed"],
        dtype=given["dtype_b"], device=given["device_b"],
    )  # fmt: skip
    return a, b


def _witness(witness: Any, against: Against) -> dict[str, Any]:
    return {**witness.to_json(), "against": asdict(against)}
