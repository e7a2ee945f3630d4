"""What a layer raises, as a violation; what the harness raises, as it is."""

from __future__ import annotations

import contextlib
import io
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vqverify.bounds import Violation

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
    except (Exception, SystemExit) as error:
        if _ours(error):
            raise
        text = str(error).strip().splitlines()
        raise Violation("raised", f"{doing} raised {type(error).__name__}: {text[0] if text else ''}"[:300]) from error


def _ours(error: BaseException) -> bool:
    """Whether the harness itself raised: a defect here must not pass for one of the layer."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = Path(last.filename)
    here = where.is_relative_to(PACKAGE) and where.relative_to(PACKAGE).parts[0] not in SUBJECTS
    between = last.name == "__torch_function__"  # the recorder stands between a layer and torch
    return here and where.name != "bare.py" and not between
