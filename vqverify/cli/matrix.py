"""`vqverify matrix`: many layers, all rows, one page."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqverify.cli import outputs, words
from vqverify.cli.asked import asking_options
from vqverify.cli.types import FILE, FOLDER, PATH, SEED

if TYPE_CHECKING:
    from vqverify.report import Report
    from vqverify.run.matrix import Member
    from vqverify.run.request import Request


@click.command("matrix")
@click.argument("layers", metavar="LAYERS.toml", type=PATH)
@asking_options
@click.option("--pick", multiple=True, metavar="GLOB", help="Layers to check, by the names of their tables.")
@click.option("--seed", type=SEED, help="Seed of construction and search.  [default: 0]")
@click.option("--jobs", type=click.IntRange(min=1), help="Layers at a time.  [default: a process a core]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest time for one layer.",
)
@click.option(
    "--resume",
    "folder",
    type=FOLDER,
    metavar="FOLDER",
    help="Keep a report a layer there, and go on from what an earlier run left.",
)
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="All reports as one, with the witnesses.")
@click.option("--html", type=FILE, metavar="FILE", help="The conformance page, which opens offline.")
@click.option("--markdown", type=FILE, metavar="FILE", help="The conformance page as Markdown.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def command(layers: Path, folder: Path | None, **given: Any) -> int:
    """Check every layer of a file against every statement, each layer in a process of its own.

    LAYERS.toml has a table a layer: target, kwargs, and optionally claims, adapter, role, dtype and documented (what
    its documentation says, for comparison). Exits with the worst of the layers' codes in the order 2, 1, 3, 0.
    """
    from vqverify.run import matrix

    with words.refusing(traceback=given["traceback"]):
        request, members = _asked(layers, given)
        with outputs.folder(folder) as kept:
            parts: list[Report] = []
            try:
                with _progress(len(members)) as show:
                    workers = given["jobs"] or os.cpu_count() or 1
                    every = matrix.outcomes(members, request, kept, workers, given["timeout"], scripts=given["scripts"])
                    for member, part in every:
                        parts.append(part)
                        show(member, part)
            finally:
                report = matrix.joined(parts, request, members)
                _write(report, given)
    return report.exit_code


def _asked(layers: Path, given: dict[str, Any]) -> tuple[Request, list[Member]]:
    from vqverify.invariant import select
    from vqverify.quantizer import Spec
    from vqverify.run import expected, matrix
    from vqverify.run.request import Request, RequestError, seed_for

    seed = seed_for(given["profile"], given["seed"])
    members = [
        member
        for member in matrix.load(layers, seed)
        if not given["pick"] or any(fnmatch.fnmatch(member.name, glob) for glob in given["pick"])
    ]
    if not members:
        raise RequestError(f"{layers} has no layer that {' or '.join(given['pick'])} names")
    select(given["only"], given["skip"])
    if given["expectations"]:
        expected.load(given["expectations"])
    request = Request(
        Spec("", seed=seed),
        given["profile"],
        given["only"],
        given["skip"],
        (),
        words.kinds(given["fail_on"]),
        given["strict"],
        expectations=given["expectations"],
    )
    return request, members


def _write(report: Report, given: dict[str, Any]) -> None:
    """The page in every format that was asked for, and a line a layer."""
    from vqverify.render import matrix as page
    from vqverify.report import save

    if given["json_file"]:
        with outputs.writing(given["json_file"]):
            save(report, given["json_file"])
    for name, render in (("html", page.html), ("markdown", page.markdown)):
        if given[name]:
            outputs.write_text(given[name], render(report))
    outputs.printed(page.terminal(report))


@contextmanager
def _progress(total: int) -> Generator[Callable[[Member, Report], None]]:
    """A line a layer on stderr, as it is done."""
    done = 0

    def show(member: Member, part: Report) -> None:
        nonlocal done
        done += 1
        counts = ", ".join(f"{count} {status}" for status, count in part.counts.items() if count)
        click.echo(f"{done}/{total} {member.name}: {counts}", err=True)

    yield show
