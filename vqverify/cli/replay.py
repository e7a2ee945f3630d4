"""`vqverify replay`: run a witness again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vqverify.cli import outputs, words
from vqverify.cli.types import FILE


@click.command("replay")
@click.argument("witness", metavar="WITNESS")
@click.option(
    "--json",
    "json_file",
    type=FILE,
    metavar="FILE",
    help="What it found, as data.",
)
@click.option(
    "--script",
    "as_script",
    is_flag=True,
    help="Print it as a script that needs torch and the layer's library alone, after seeing it fail.",
)
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def command(witness: str, json_file: Path | None, *, as_script: bool, traceback: bool) -> int:
    """Run a failing input again: exit 0 if it passes now, 1 if it still fails, 2 if it cannot be read.

    WITNESS is a witness file, or REPORT.json#digest (the first digits are enough).
    """
    from vqverify.render import replay as rendering
    from vqverify.run import replay
    from vqverify.witness import from_json

    with words.refusing(traceback=traceback):
        data = load(witness)
        program = from_json(data)
        if as_script:
            return _script(data)
        found = replay.replay(program, against=data.get("against"))
    if json_file:
        outputs.write_data(
            json_file,
            {
                "format": 1,
                "witness": data,
                "fails": found.fails,
                "label": found.label,
                "message": found.message,
            },
        )
    outputs.printed(rendering.render(data, found))
    return int(found.fails)


def _script(data: Mapping[str, Any]) -> int:
    """Print a witness as a script: exit 1 if it fails, 0 if there is none that fails, with the reason on stderr."""
    from vqverify.run import scripts

    told = scripts.of_witness(data)
    if told.script is None:
        click.echo(f"no script: {told.reason}", err=True)
        return 0
    click.echo(told.script.text, nl=False)
    click.echo(told.script.printed, nl=False, err=True)
    return 1


def load(where: str) -> Mapping[str, Any]:
    """The JSON of a witness from a file, or out of a report.

    Raises:
        WitnessError: if there is no such witness.
    """
    from vqverify.witness import WitnessError

    path, hash_, digest = where.rpartition("#") if not Path(where).exists() else (where, "", "")
    try:
        data = json.loads(Path(path or where).read_text("utf-8"))
    except OSError as error:
        raise WitnessError(f"{path or where} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WitnessError(f"{path or where} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise WitnessError(f"{path or where} holds no witness: a JSON object is needed")
    return _of_report(data, digest if hash_ else "", path or where) if "subjects" in data else data


def _of_report(report: Mapping[str, Any], digest: str, path: str) -> Mapping[str, Any]:
    from vqverify.witness import WitnessError

    witnesses: Mapping[str, Any] = report.get("witnesses", {})
    matching = [name for name in witnesses if name.startswith(digest)]
    if len(matching) == 1:
        return witnesses[matching[0]]
    there = ", ".join(list(witnesses)[:8]) or "none"
    if not digest:
        raise WitnessError(f"{path} is a report: name one of its witnesses as {path}#DIGEST; it has {there}")
    raise WitnessError(f"{path} has {'no' if not matching else 'more than one'} witness {digest!r}; it has {there}")
