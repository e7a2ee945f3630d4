"""`vqverify train`: a miniature training, watched, that a kill does not lose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqverify.cli import outputs, words
from vqverify.cli.types import FOLDER, SEED

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vqverify.training import Run

LIVE = ("reconstruction", "relative_error", "perplexity", "dead")
MEASUREMENTS = 40


@click.command("train")
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="Show the trainings.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of everything random.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Steps in all; the task's own if not given.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps between measurements and checkpoints; steps/40 if not given.",
)
@click.option(
    "--out",
    type=FOLDER,
    metavar="DIR",
    help="Results; trainings/NAME-SEED if not given. A checkpoint there is continued.",
)
@click.option("--no-plots", is_flag=True, help="No pictures (they need matplotlib).")
def command(name: str | None, **given: Any) -> None:
    """Train a miniature VQ-VAE and watch it.

    \b
    vqverify train --list
    vqverify train digits                     rotation estimator, EMA codebook
    vqverify train photographs-hessian-ema    TASK-ESTIMATOR-CODEBOOK[-cosine]

    The folder holds checkpoint.pt, curve.json, card.md (what is needed to repeat the run), curves.png and
    reconstructions.png. The same command continues a run that was killed, to the same curve bit for bit; with more
    --steps (and the same --every) it goes further.
    """  # noqa: D301  (click keeps the layout of a paragraph that starts with a backspace)
    from vqverify.training import MissingPackageError, UnknownRecipeError, named
    from vqverify.training.folder import CheckpointError

    if given["listing"]:
        outputs.printed(_listing())
        return
    if name is None:
        words.refuse("NAME is missing; `vqverify train --list` shows the trainings")
    try:
        recipe = named(name)
        folder: Path = given["out"] or Path("trainings") / f"{recipe.name}-{given['seed']}"
        _train(recipe, folder, given)
    except (UnknownRecipeError, MissingPackageError, CheckpointError) as error:
        words.refuse(str(error))
    except OSError as error:
        words.refuse(f"{error.filename or 'the results'} cannot be read or written: {error.strerror}")


def _train(recipe: Any, folder: Path, given: dict[str, Any]) -> None:
    from vqverify.files import write_atomically
    from vqverify.training import TASKS, Run, plots
    from vqverify.training import folder as folders

    if not given["no_plots"]:
        plots.require()
    steps: int = given["steps"] or TASKS[recipe.task].steps
    every: int = given["every"] or max(1, steps // MEASUREMENTS)
    run = Run(recipe, given["seed"], every=every)
    if folders.resume(run, folder):
        click.echo(f"continues {folder} at step {run.step}", err=True)
    _advance(run, steps, folder)
    line = f"vqverify train {recipe.name} --seed {run.seed} --steps {run.step} --every {every}"
    write_atomically(folder / folders.CARD, folders.card(run, line))
    if not given["no_plots"]:
        write_atomically(folder / "curves.png", plots.curves(run.curve()))
        write_atomically(folder / "reconstructions.png", plots.reconstructions(run))
    outputs.printed(_result(run))
    click.echo(f"results: {folder}")


def _advance(run: Run, steps: int, folder: Path) -> None:
    """Train on, saving at every measurement, with a bar on a terminal and a line a measurement elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vqverify.training import folder as folders

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(_live(run), total=steps, completed=run.step)
        while run.step < steps:
            run.advance(min(run.every - run.step % run.every, steps - run.step))
            folders.save(run, folder)
            progress.update(bar, completed=run.step, description=_live(run))
            if not console.is_terminal:
                click.echo(f"step {run.step}/{steps}  {_live(run)}", err=True)


def _live(run: Run) -> str:
    curve = run.curve()
    if not curve.steps:
        return ""
    numbers = "  ".join(f"{name.replace('_', ' ')} {curve.final(name):.3g}" for name in LIVE)
    return f"{numbers}  {curve.steps_per_second:.0f} steps/s"


def _result(run: Run) -> RenderableType:
    from rich.table import Table

    from vqverify.training import WATCHED

    curve = run.curve()
    table = Table("watched", "first", "last", "what it is", box=None, pad_edge=False, header_style="dim")
    for name, watch in WATCHED.items():
        if curve.steps:
            table.add_row(name, f"{curve.first(name):.4g}", f"{curve.final(name):.4g}", watch.about)
    return table


def _listing() -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from vqverify.training import TASKS, recipes

    table = Table("task", "K", "D", "steps", "what", box=None, pad_edge=False, header_style="dim")
    for name, task in TASKS.items():
        table.add_row(name, str(task.codebook_size), str(task.dim), str(task.steps), task.about)
    names = "\n".join(recipes())
    return Group(table, Text(f"\n{names}", no_wrap=True))
