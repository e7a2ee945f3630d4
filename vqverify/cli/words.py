"""Reading words of the command line, and refusing them in one clear sentence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, NoReturn

import click

KINDS = ("law", "contract", "limit", "hardening")
FEW = 12  # names that are listed one by one
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def near(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or what there is (many dotted ids by their group), or nothing to say."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {', '.join(close)}?"
    if len(known) > FEW:
        known = list(
            dict.fromkeys(f"{group}.*" if dot else group for group, dot, _ in (k.partition(".") for k in known))
        )
    return f"; there are {', '.join(known)}" if known else ""


def value_of(text: str, option: str) -> Any:
    """A value: JSON, else a string.

    Raises:
        UsageError: for Python's True, False and None, which would become true-ish texts.
    """
    if text in _PYTHON_WORDS:
        raise click.UsageError(
            f"{option}={text} would be the text {text!r}: values are JSON, write {_PYTHON_WORDS[text]}"
        )
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def assignments(items: Iterable[str], option: str) -> dict[str, Any]:
    """`name=value` pairs of a repeated option.

    Raises:
        UsageError: if an item has no `=`, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"{option} {item!r} needs the form name=value")
        if name in found:
            raise click.UsageError(f"{option} {name} is given twice")
        found[name.strip()] = value_of(text, f"{option} {name}")
    return found


def json_object(text: str | None, option: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UsageError: if the text is not one.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{option} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f"{option} needs a JSON object such as '{{\"dim\": 8}}', got {text!r}")
    return value


def kinds(text: str) -> tuple[str, ...]:
    """Kinds, separated by commas; `none` or nothing for no kind at all.

    Raises:
        UsageError: if one is unknown.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip() and word.strip() != "none")
    for word in words:
        if word not in KINDS:
            raise click.UsageError(f"--fail-on: {word!r} is no kind{near(word, KINDS)}")
    return words


@contextmanager
def refusing(*, traceback: bool) -> Generator[None]:
    """Turn what is the user's to mend into one sentence and exit 2; `traceback` shows where it comes from."""
    from vqverify.invariant import UnknownInvariantError
    from vqverify.report import ReportError
    from vqverify.run.expected import ExpectationError
    from vqverify.run.request import RequestError
    from vqverify.subject.claims import ClaimError
    from vqverify.subject.target import TargetError
    from vqverify.witness import WitnessError

    try:
        yield
    except (
        TargetError,
        ClaimError,
        UnknownInvariantError,
        ReportError,
        WitnessError,
        ExpectationError,
        RequestError,
    ) as error:
        if traceback:
            import traceback as tracebacks

            tracebacks.print_exc()
        refuse(str(error))


class _Refusal(click.ClickException):
    """What is the user's to mend."""

    exit_code = 2


def refuse(sentence: str) -> NoReturn:
    """Exit 2 with a sentence."""
    raise _Refusal(sentence)
