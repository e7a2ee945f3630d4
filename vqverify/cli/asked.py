"""The options that say what is asked of a layer, shared by the commands that check one or many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vqverify.cli.types import FOLDER, PATH

_OPTIONS = (
    click.option(
        "--profile",
        default="quick",
        show_default=True,
        metavar="NAME",
        help="How long to look: quick, merge or nightly.",
    ),
    click.option("--only", multiple=True, metavar="GLOB", help="Rows to check, as 'lookup.*'."),
    click.option("--skip", multiple=True, metavar="GLOB", help="Rows to leave out."),
    click.option(
        "--fail-on",
        default="law,contract",
        show_default=True,
        metavar="KINDS",
        help="Kinds whose failures fail the run.",
    ),
    click.option("--strict", is_flag=True, help="Undetermined rows fail the run."),
    click.option(
        "--expectations",
        type=PATH,
        metavar="FILE",
        help="Expected failures, with reasons and witnesses.",
    ),
    click.option(
        "--scripts",
        type=FOLDER,
        metavar="FOLDER",
        help="Write each failure there as a script of 15 lines, seen to fail in a fresh process.",
    ),
)


def asking_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose rows and say what fails a run."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
