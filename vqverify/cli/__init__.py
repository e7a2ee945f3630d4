"""The command line: a door to `vqverify.run.runner`, without logic of its own.

Command modules import nothing heavy at their top, so that `vqverify --help` answers before torch would
be loaded.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import click

from vqverify._version import __version__

COMMANDS = {
    "check": "check",
    "matrix": "matrix",
    "list": "catalogue",
    "identify": "identify",
    "compare": "compare",
    "replay": "replay",
    "report": "report",
    "explain": "explain",
    "prove": "prove",
    "audit": "audit",
    "train": "train",
}
CRASHED, INTERRUPTED = 3, 130


class _Commands(click.Group):
    """Commands by name, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [name for name, module in COMMANDS.items() if find_spec(f"vqverify.cli.{module}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"vqverify.cli.{COMMANDS[cmd_name]}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from vqverify.cli.words import near

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{near(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vqverify")
def group() -> None:
    """Check what a vector-quantization layer owes its user, by searching for inputs that break it.

    \b
    vqverify check                            the built-in reference layer
    vqverify check my_vq.py:MyVQ --kw dim=8   a class in a file
    vqverify check pkg.mod:Class --json F     a class of an installed package

    Exit codes: 0 every statement held, 1 something failed, 2 the command line or the layer's construction
    is wrong, 3 the harness could not judge a row.
    """  # noqa: D301  (click keeps the layout of a paragraph that starts with a backspace)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of the contract."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  (a terminal that lacks λ still gets a report)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  (`pkg.mod:Class` means what it means to `python -m`)
    code = run(arguments)
    gc.freeze()  # the process ends, and collecting all that torch has built first would take half a second
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = group.main(
            list(arguments) if arguments is not None else None, prog_name="vqverify", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("vqverify: interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` has seen enough
        return CRASHED
    except Exception:  # noqa: BLE001  (a fault of vqverify must not read as "the layer failed", exit 1)
        traceback.print_exc()
        click.echo("vqverify: this is a fault of vqverify, not of the layer; please report it", err=True)
        return CRASHED
    return code if isinstance(code, int) else 0
