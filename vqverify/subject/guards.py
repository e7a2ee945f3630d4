"""What a layer raises, as a violation; what the harness raises, as it is."""

from __future__ import annotations

import contextlib
import io
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from vqverify.bounds import Ended, Violation

PACKAGE = Path(__file__).parents[1]
SUBJECTS = {"reference", "mutants"}  # layers of our own, which may be wrong


@contextmanager
def guarded(doing: str) -> Generator[None]:
    """Turn whatever a layer raises into `Violation("raised")`; what it prints or warns is swallowed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Violation:
        raise
    except SystemExit as error:
        raise Ended("raised", f"{doing} called sys.exit({error.code!r})") from error
    except Exception as error:
        if _ours(error):
            raise
        text = str(error).strip().splitlines()
        kind = Ended if _out_of_memory(error) else Violation
        raise kind("raised", f"{doing} raised {type(error).__name__}: {text[0] if text else ''}"[:300]) from error


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch's allocator of the CPU raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _ours(error: BaseException) -> bool:
    """Whether the harness itself raised: a defect here must not pass for one of the layer."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = Path(last.filename)
    here = where.is_relative_to(PACKAGE) and where.relative_to(PACKAGE).parts[0] not in SUBJECTS
    between = last.name == "__torch_function__"  # the recorder stands between a layer and torch
    return here and where.name != "bare.py" and not between
