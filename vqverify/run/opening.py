"""Opening a subject for a run: what it is, and what its expected failures do today."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vqverify.invariant import Invariant
from vqverify.quantizer import Finding, Quantizer, Spec
from vqverify.report import Result, Status
from vqverify.run import expected
from vqverify.subject import target


@dataclass(frozen=True)
class Opened:
    """A subject that is ready, here or in another process.

    Attributes:
        traits: claims and findings, joined.
        verdicts: what the witnesses of expected failures do today.
        package: name and version of the distribution that it comes from.
        subject: the subject, where it lives in this process.
        broken: why it could not be opened: it killed its process, or took too long.
    """

    traits: Mapping[str, Finding] = field(default_factory=dict[str, Finding])
    verdicts: Mapping[expected.Entry, expected.Verdict] = field(default_factory=dict[expected.Entry, expected.Verdict])
    package: Mapping[str, str] | None = None
    subject: Quantizer | None = None
    broken: str = ""


def opened(spec: Spec, entries: Sequence[expected.Entry] = (), *, obj: Any = None) -> Opened:
    """Open a subject in this process.

    Args:
        spec: what to open.
        entries: its expected failures.
        obj: a class, factory, function or built module in place of the spec's target.

    Raises:
        TargetError: if it cannot be imported, built or called.
        ClaimError: if a claim is none.
        ExpectationError: if a witness cannot be read.
    """
    from vqverify.subject import open_subject

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = open_subject(spec, obj=obj)
        verdicts = {entry: expected.replayed(entry, subject) for entry in entries}
    return Opened(dict(subject.traits), verdicts, _package(spec, obj, subject.module), subject)


def _package(spec: Spec, obj: Any, module: nn.Module) -> dict[str, str] | None:
    factory = target.load(spec.target) if obj is None else obj
    found = target.package_of(factory)
    if found is None and spec.role == "layer":  # a factory in the user's own file may build a layer of a library
        found = target.package_of(type(module))
    return {"name": found[0], "version": found[1]} if found else None


def identified(traits: Mapping[str, Finding]) -> dict[str, Any]:
    """Traits as the report keeps them."""
    return {
        name: {
            "value": plain(finding.value), "origin": finding.origin, "evidence": finding.evidence,
            "mistake": finding.mistake,
        }
        for name, finding in traits.items()
    }  # fmt: skip


def plain(value: Any) -> Any:
    """A value as JSON has it: lists, texts and numbers; what else there is as its text."""
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def unchecked(row: Invariant, status: Status, reason: str, seed: int) -> Result:
    """The result of a row that was never looked at."""
    return Result(
        row.id, status, row.kind, row.mode, row.state, reason=reason, statement=row.statement,
        source=row.source, hint=row.hint, seed=seed,
    )  # fmt: skip
