"""`vqverify check`: the main job."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqverify.cli import outputs, words
from vqverify.cli.asked import asking_options
from vqverify.cli.subject import spec_of, subject_options
from vqverify.cli.types import PATH

if TYPE_CHECKING:
    from vqverify.report import Report
    from vqverify.run.request import Request
    from vqverify.run.runner import Run

MOST_FORKS = 4
AUTOSAVE = 2.0  # seconds between two writes of an unfinished report: what a layer that kills the process leaves


@click.command("check")
@subject_options
@asking_options
@click.option("--require", multiple=True, metavar="GLOB", help="Rows that must apply and pass.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Rows not reached by then stay undetermined.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Worker processes that open the layer anew; 1 for none.  [default: copies of this process share the rows]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Longest time for one row, in a process of its own.",
)
@click.option("--accept", is_flag=True, help="Append the new failures to the expectations; you write the reasons.")
@click.option(
    "--baseline",
    type=PATH,
    metavar="OLD.json",
    help="Mark failures that an older report has, too.",
)
@click.option(
    "--resume",
    type=PATH,
    metavar="FILE",
    help="Go on from the report of a run that was cut short.",
)
@outputs.output_options
def command(**given: Any) -> int:
    """Check a layer against every statement that applies to it.

    TARGET is pkg.mod:Class or file.py:Class; without it the built-in reference layer is checked.
    """
    from vqverify.run import baseline, memory, runner

    with words.refusing(traceback=given["traceback"]):
        if given["accept"] and given["expectations"] is None:
            raise click.UsageError("--accept needs --expectations FILE, the file to write to")
        request = _request(given)
        resume = outputs.read(given["resume"]) if given["resume"] else None
        old = outputs.read(given["baseline"]) if given["baseline"] else None
        with memory.bounded(request.spec):
            run = runner.start(request, resume=resume)
        try:
            with memory.bounded(request.spec):
                _drive(run, given["json_file"])
        except BaseException:
            outputs.write(run.report(), given)
            outputs.show(run.report(), given["json_file"])
            raise
        report = run.report()
        if old is not None:
            report = baseline.marked(report, old)
        if given["scripts"]:
            outputs.write(report, given)  # what was found outlives a folder that cannot be written
            report = _scripted(run, report, given["scripts"])
        outputs.write(report, given)
        outputs.show(report, given["json_file"])
        if given["accept"]:
            _accept(report, given["expectations"])
    return report.exit_code


def _scripted(run: Run, report: Report, folder: Path) -> Report:
    from vqverify.run import scripts
    from vqverify.subject.layer import Layer

    subject = run.opened.subject
    with outputs.writing(folder):
        return scripts.scripted(report, folder, subject=subject if isinstance(subject, Layer) else None)


def _request(given: dict[str, Any]) -> Request:
    from vqverify.run.request import Request, seed_for

    seed = seed_for(given["profile"], given["seed"])
    spec = spec_of(given, seed)
    expectations = given["expectations"]
    if given["accept"] and not expectations.exists():
        expectations = None  # the file to come
    return Request(
        spec,
        given["profile"],
        given["only"],
        given["skip"],
        given["require"],
        words.kinds(given["fail_on"]),
        given["strict"],
        given["budget"],
        expectations,
        given["jobs"] or 1,
        timeout=given["timeout"],
        forks=1 if given["jobs"] else min(MOST_FORKS, os.cpu_count() or 1),
    )


def _drive(run: Run, json_file: Path | None) -> None:
    """Go through the rows, showing and keeping what is done."""
    from vqverify.report import save

    saved = time.monotonic()
    with _terminating(), _progress(len(run.rows)) as advance:
        for id_ in run.steps():
            advance(id_)
            if json_file and time.monotonic() - saved > AUTOSAVE:
                save(run.report(), json_file)
                saved = time.monotonic()


@contextmanager
def _terminating() -> Generator[None]:
    """Let a polite kill end the run as Ctrl-C does: with a report."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _progress(total: int) -> Generator[Callable[[str], None]]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]checking[/]"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda id_: bar.update(task, advance=1, description=id_)


def _accept(report: Any, path: Path) -> None:
    from vqverify.run import expected

    added = expected.accept(report, path)
    click.echo(f"{added} entries added to {path}; it is read once each has its reason.", err=True)
