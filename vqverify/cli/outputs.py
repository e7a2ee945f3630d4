"""Where a report goes: the terminal, and files in the formats that others read."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from vqverify.cli import words
from vqverify.cli.types import FILE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vqverify.report import Report

WIDTH = 100
_HELP = {
    "html": "The report as one page that opens offline.",
    "junit": "The report as JUnit XML.",
    "markdown": "The report as Markdown.",
    "badge": "A badge, as JSON for shields.io.",
}
_OPTIONS = (
    click.option(
        "--json",
        "json_file",
        type=FILE,
        metavar="FILE",
        help="The report, and its witnesses in FILE.witnesses/.",
    ),
    *(click.option(f"--{name}", type=FILE, metavar="FILE", help=text) for name, text in _HELP.items()),
)


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name output files."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def write(report: Report, given: Mapping[str, Any]) -> None:
    """Write every file that was asked for; refused with exit 2 if one cannot be written."""
    from vqverify.report import save

    if given.get("json_file"):
        with writing(given["json_file"]):
            save(report, given["json_file"])
    for name in ("html", "junit", "markdown", "badge"):
        if given.get(name):
            write_text(given[name], import_module(f"vqverify.render.{name}").render(report))


def write_data(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; refused with exit 2 if it cannot be written."""
    from vqverify.report import dumps

    write_text(path, dumps(data))


def write_text(path: Path, text: str) -> None:
    """Write a page whole or not at all; refused with exit 2 if it cannot be written."""
    from vqverify.report import write_atomically

    with writing(path):
        write_atomically(path, text)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Refuse with exit 2 and the file's name if what is done inside cannot write it."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        words.refuse(f"{path} cannot be written: {_blocking(path)} is a file, not a folder")
    except OSError as error:
        words.refuse(f"{path} cannot be written: {error.strerror}")


def _blocking(path: Path) -> Path:
    """What stands in the way of a folder."""
    return next((parent for parent in (path, *path.parents) if parent.exists() and not parent.is_dir()), path.parent)


def show(report: Report, saved: Path | None = None) -> None:
    """Print a report; `saved` is where its JSON is."""
    from vqverify.render import terminal

    printed(terminal.render(report, saved))


def printed(what: RenderableType) -> None:
    """Print: in colour on a terminal; plain, 100 columns wide and without trailing blanks elsewhere."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.width = min(console.width, WIDTH)
        console.print(what)
        return
    console.width = WIDTH
    with console.capture() as text:
        console.print(what)
    click.echo("\n".join(line.rstrip() for line in text.get().splitlines()))


def read(path: Path) -> Report:
    """Read a report file.

    Raises:
        ReportError: if it is none.
    """
    from vqverify.report import ReportError, from_json

    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ReportError(f"the report {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ReportError(f"{path} is no report: {error}") from None
    if not isinstance(data, dict):
        raise ReportError(f"{path} is no report: it needs a JSON object")
    try:
        return from_json(data)
    except ReportError as error:
        raise ReportError(f"{path} is no report: {error}") from None


@contextmanager
def folder(given: Path | None) -> Generator[Path]:
    """Where reports are kept while many layers are checked: the user's folder, or one that goes away."""
    if given is not None:
        yield given
        return
    with TemporaryDirectory(prefix="vqverify-") as temporary:
        yield Path(temporary)
