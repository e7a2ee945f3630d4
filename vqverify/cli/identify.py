"""`vqverify identify`: what a layer is, with evidence."""

from __future__ import annotations

import warnings
from typing import Any

import click

from vqverify.cli import outputs, words
from vqverify.cli.subject import spec_of, subject_options
from vqverify.cli.types import FILE


@click.command("identify")
@subject_options
@click.option(
    "--json",
    "json_file",
    type=FILE,
    metavar="FILE",
    help="The findings as data.",
)
def command(**given: Any) -> None:
    """Tell what a layer is: what it claims, what probing found, and the evidence for each."""
    from vqverify.render import identity
    from vqverify.run.opening import identified
    from vqverify.subject import open_subject

    with words.refusing(traceback=given["traceback"]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = spec_of(given, given["seed"] or 0)
        subject = open_subject(spec)
        domain = subject.domain
        data = {
            "format": 1,
            "name": spec.name,
            "target": spec.target,
            "kwargs": dict(spec.kwargs),
            "domain": {
                "dim": domain.dim,
                "dtype": str(domain.dtype),
                "layouts": list(domain.layouts),
                "min_n": domain.min_n,
            },
            "identified": identified(subject.traits),
            "claims": identified(subject.claims),
            "found": identified(subject.found),
        }
    if given["json_file"]:
        outputs.write_data(given["json_file"], data)
    outputs.printed(identity.render(data))
