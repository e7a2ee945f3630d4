"""`vqverify report`: a report file in any rendering, and what changed since another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vqverify.cli import outputs, words
from vqverify.cli.types import PATH


@click.command("report")
@click.argument("file", type=PATH)
@click.option(
    "--against",
    type=PATH,
    metavar="OLD",
    help="Show what changed since an older report.",
)
@outputs.output_options
def command(file: Path, against: Path | None, **given: Any) -> int:
    """Show a JSON report, or turn it into another format; exits as the run that made it did."""
    from vqverify.render import changes
    from vqverify.run import baseline

    with words.refusing(traceback=False):
        report = outputs.read(file)
        old = outputs.read(against) if against else None
    if old is not None:
        report = baseline.marked(report, old)
    outputs.write(report, given)
    if not any(given.values()):
        outputs.show(report, file)
    if old is not None:
        outputs.printed(changes.render(baseline.changes(report, old)))
    return report.exit_code
