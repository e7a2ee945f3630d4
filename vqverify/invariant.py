"""One mathematical statement about quantizers, with everything that is needed to check and to explain it."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from vqverify.bounds import Clause
from vqverify.case import Case
from vqverify.quantizer import Finding, Quantizer

Kind = Literal["law", "contract", "limit", "hardening"]
Mode = Literal["search", "table", "statistical", "process"]
State = Literal["fresh", "warmed", "both"]
Check = Callable[[Quantizer, Case], Iterator[Clause]]


class Undetermined(Exception):  # noqa: N818  (neither a failure nor an error: an open question)
    """Raised by a check that cannot decide on this subject; the message is the reason."""


def no_parts(_: Quantizer) -> tuple[str | None, ...]:
    """A row without cases."""
    return (None,)


DECISIVE_GROUPS = ("lookup", "estimator")
DECISIVE_TRAITS = {"codes", "levels", "estimator", "metric"}


@dataclass(frozen=True)
class Invariant:
    """A statement with its source, hypotheses, inputs and the wrong quantizers that it must reject.

    Attributes:
        id: `group.name`, stable: reports, expectations and dashboards refer to it.
        statement: one sentence of mathematics.
        source: paper and equation, theorem of the theory page.
        kind: law, contract, limit or hardening.
        mode: search (corners, mass, Hypothesis), table (corners only), statistical (fixed design), process.
        state: fresh, warmed (after a drawn history of batches) or both.
        needs: hypotheses on the traits of a subject, see `applicability`.
        mutants: names of the wrong quantizers that it must reject.
        hint: what the usual mistake looks like in code.
        follows: rows (`id` or `id[case]`) that, when they fail too, explain a failure of this one.
        check: (subject, case) -> clauses; a check that yields nothing found its hypotheses unmet.
        parts: the cases of the row for a subject; raises `Undetermined` where that cannot be told.
        corners: names of the pinned inputs (`vqverify.strategies.CORNERS`).
        hardening: patterns of cases that are hardening, whatever the kind of the row.
        profiles: in which the row is checked; elsewhere it is n/a.
    """

    id: str
    statement: str
    source: str
    kind: Kind
    mode: Mode
    state: State
    needs: tuple[str, ...]
    mutants: tuple[str, ...]
    hint: str
    follows: tuple[str, ...]
    check: Check
    parts: Callable[[Quantizer], Iterable[str | None]]
    corners: tuple[str, ...]
    hardening: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ("quick", "merge", "nightly")

    @property
    def decisive(self) -> bool:
        """Whether it takes knowing how the layer quantises: a run in which no such row could be decided fails."""
        told = {need.partition("=")[0] for need in self.needs if "!" not in need}
        return self.id.partition(".")[0] in DECISIVE_GROUPS and bool(told & DECISIVE_TRAITS)

    def kind_of(self, part: str | None) -> Kind:
        """The kind of one case of the row."""
        harder = part is not None and any(fnmatch.fnmatchcase(part, pattern) for pattern in self.hardening)
        return "hardening" if harder else self.kind


_REGISTRY: dict[str, Invariant] = {}


def invariant(
    id_: str,
    *,
    source: str,
    kind: Kind = "law",
    mode: Mode = "search",
    state: State = "fresh",
    needs: tuple[str, ...] = (),
    mutants: tuple[str, ...] = (),
    hint: str = "",
    follows: tuple[str, ...] = (),
    parts: Callable[[Quantizer], Iterable[str | None]] = no_parts,
    corners: tuple[str, ...] = ("zero", "on-code", "tie", "antiparallel", "single", "off-centre", "parallel"),
    hardening: tuple[str, ...] = (),
    profiles: tuple[str, ...] = ("quick", "merge", "nightly"),
) -> Callable[[Check], Check]:
    """Register a check; its docstring is the statement.

    A last paragraph that begins with `Margin:` is not part of it: it says why right layers stay far from the bound.

    Raises:
        ValueError: if the id is taken.
    """

    def register(check: Check) -> Check:
        if id_ in _REGISTRY:
            raise ValueError(f"invariant {id_!r} is registered twice")
        statement = " ".join((inspect.getdoc(check) or "").partition("\n\nMargin:")[0].split())
        _REGISTRY[id_] = Invariant(
            id_, statement, source, kind, mode, state, needs, mutants, hint, follows, check, parts, corners,
            hardening, profiles,
        )  # fmt: skip
        return check

    return register


def registry() -> Mapping[str, Invariant]:
    """Every invariant by id, in the order of the catalogue."""
    import_module("vqverify.invariants")  # registers them
    return _REGISTRY


class UnknownInvariantError(Exception):
    """A pattern that names no invariant; the message says what is near."""


def select(only: Iterable[str] = (), skip: Iterable[str] = ()) -> tuple[Invariant, ...]:
    """Invariants whose id matches one of `only` (all if empty) and none of `skip` (shell patterns).

    Raises:
        UnknownInvariantError: if a pattern matches nothing, or nothing is left.
    """
    known, only, skip = registry(), tuple(only), tuple(skip)
    for pattern in (*only, *skip):
        if not fnmatch.filter(known, pattern):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
            advice = f"; did you mean {', '.join(near)}?" if near else "; `vqverify list` shows them all"
            raise UnknownInvariantError(f"no invariant is called {pattern!r}{advice}")
    wanted = [row for row in known.values() if not only or any(fnmatch.fnmatch(row.id, p) for p in only)]
    left = tuple(row for row in wanted if not any(fnmatch.fnmatch(row.id, pattern) for pattern in skip))
    if not left:
        raise UnknownInvariantError(
            f"nothing is left to check: {', '.join(map(repr, skip))} skips every invariant asked for"
        )
    return left


@dataclass(frozen=True)
class Applicability:
    """Whether a row applies to a subject: `applies`, `n/a` or `undetermined`, and why not."""

    verdict: Literal["applies", "n/a", "undetermined"]
    reason: str = ""


def applicability(row: Invariant, traits: Mapping[str, Finding]) -> Applicability:
    """Derive it from the row's needs: `name`, `!name`, `name=a|b`, `name!=a|b`.

    An unknown trait makes the row `undetermined`, with the evidence that was not enough; a trait with another
    value makes it `n/a`. `n/a` wins: a row that does not apply need not be decided. `name!=a|b` excludes only
    what is known to be a or b: what is unknown is checked.
    """
    open_question = ""
    for need in row.needs:
        verdict, reason = _judge(need, traits)
        if verdict == "n/a":
            return Applicability("n/a", reason)
        if verdict == "undetermined":
            open_question = open_question or reason
    return Applicability("undetermined", open_question) if open_question else Applicability("applies")


def _judge(need: str, traits: Mapping[str, Finding]) -> tuple[str, str]:
    name, negated, values = _parse(need)
    finding = traits.get(name)
    if values and negated and (finding is None or finding.value is None):
        return "applies", ""
    if finding is None or finding.value is None:
        evidence = finding.evidence if finding else "nothing was found out about it"
        return "undetermined", f"{name} is unknown: {evidence}"
    if values and not negated and finding.value == "other":
        return "undetermined", f"{name} fits no known family: {finding.evidence}"
    actual = finding.value
    held = actual if isinstance(actual, list | tuple) else [actual]
    fits = any(str(item) in values for item in held) if values else bool(actual)
    if fits != negated:
        return "applies", ""
    said = f" ({finding.evidence})" if finding.evidence else ""
    return "n/a", f"{name} is {_show(actual)}{said}"


def _show(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return {True: "there", False: "absent"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _parse(need: str) -> tuple[str, bool, tuple[str, ...]]:
    if "!=" in need:
        name, _, values = need.partition("!=")
        return name, True, tuple(values.split("|"))
    if "=" in need:
        name, _, values = need.partition("=")
        return name, False, tuple(values.split("|"))
    return need.removeprefix("!"), need.startswith("!"), ()
