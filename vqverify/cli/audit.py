"""`vqverify audit`: the kill matrix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from vqverify.cli import outputs, words
from vqverify.cli.types import FILE, FOLDER


@click.command("audit")
@click.argument("patterns", nargs=-1, metavar="[MUTANT]...")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each mutant.")
@click.option("--whole", is_flag=True, help="Check all rows under every seed, not only the first.")
@click.option("--jobs", type=click.IntRange(min=1), help="Mutants at a time.  [default: a process a core]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest time for one run.",
)
@click.option(
    "--resume",
    "folder",
    type=FOLDER,
    metavar="FOLDER",
    help="Keep a report a run there, and go on from what an earlier audit left.",
)
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="The matrix as data.")
@click.option("--html", type=FILE, metavar="FILE", help="The matrix as one page that opens offline.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def command(patterns: tuple[str, ...], folder: Path | None, **given: Any) -> int:
    """Check every mutant, or those that match, against all rows: a suite is worth what it rejects.

    Seeds after the first are checked against the rows that name the mistake. Exits with 1 if in more than one run in
    twenty a mutant survives, no row that names its mistake rejects it, or another is listed first; or, where all
    mutants are tried, if a row rejects none.
    """
    from rich.console import Console
    from rich.progress import Progress

    from vqverify.render import audit as page
    from vqverify.run import audit

    with words.refusing(traceback=given["traceback"]):
        wrong = audit.chosen(patterns)
        console = Console(stderr=True)
        with outputs.folder(folder) as kept, Progress(console=console, transient=True) as bar:
            task = bar.add_task("mutants", total=len(wrong) * given["seeds"])
            found = audit.run(
                wrong,
                kept,
                seeds=given["seeds"],
                whole=given["whole"],
                jobs=given["jobs"] or os.cpu_count() or 1,
                timeout=given["timeout"],
                watch=lambda _: bar.advance(task),
            )
    if given["json_file"]:
        outputs.write_data(given["json_file"], found.to_json())
    if given["html"]:
        outputs.write_text(given["html"], page.html(found, wrong))
    outputs.printed(page.terminal(found))
    return found.exit_code
