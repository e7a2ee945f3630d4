"""Types of command-line values that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class _Named(click.Path):
    """A path with a name: an empty one, as an unset shell variable leaves it, would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("'' names no file or folder", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Named(path_type=Path)
FILE = _Named(dir_okay=False, path_type=Path)
FOLDER = _Named(file_okay=False, path_type=Path)
SEED = click.IntRange(0, 2**32 - 1)  # what every generator takes
