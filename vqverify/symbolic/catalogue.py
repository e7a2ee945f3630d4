"""All derivations and errata, and running them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from typing import Any, Literal

from vqverify.symbolic.derivation import Derivation, Proof
from vqverify.symbolic.errata import ERRATA, Erratum

SUBJECTS = (
    "householder",
    "angle",
    "extremal",
    "dynamics",
    "rounding",
    "degenerate",
    "gap",
    "consistency",
    "commitment",
    "ema",
    "conservation",
    "sync",
    "affine",
    "voronoi",
    "argmin",
    "sampling",
    "perplexity",
    "residual",
    "scalar",
)


@dataclass(frozen=True)
class Result:
    """What `prove` reports of one theorem or erratum.

    Attributes:
        kind: ``theorem`` or ``erratum``.
        statement: in plain text.
        source: paper and equation.
        proof: which steps were executed, whether they hold, and the time.
    """

    kind: Literal["theorem", "erratum"]
    statement: str
    source: str
    proof: Proof

    def as_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "id": self.proof.id,
            "kind": self.kind,
            "statement": self.statement,
            "source": self.source,
            "steps": dict(self.proof.kinds),
            "holds": self.proof.holds,
            "failed": list(self.proof.failed),
            "seconds": round(self.proof.seconds, 3),
        }


@cache
def derivations() -> tuple[Derivation, ...]:
    """All derivations, in the order of the theory page (T1 to T37)."""
    found: list[Derivation] = []
    for subject in SUBJECTS:
        found.extend(import_module(f"vqverify.symbolic.{subject}").DERIVATIONS)
    return tuple(sorted(found, key=lambda one: int(one.theorem[1:])))


def errata() -> tuple[Erratum, ...]:
    """All errata, by paper."""
    return ERRATA


def names(item: Derivation | Erratum) -> tuple[str, ...]:
    """Under which names an item is found, without regard to case: its id, and a theorem's number."""
    found = (item.id, item.theorem) if isinstance(item, Derivation) else (item.id,)
    return tuple(name.casefold() for name in found)


def known() -> tuple[str, ...]:
    """What there is to ask for, to be told to a reader who asked for something else."""
    return (*(one.id for one in (*derivations(), *errata())), "T1 to T37")


def derivation(name: str) -> Derivation:
    """The derivation with this id or theorem number, in either case.

    Args:
        name: ``rotation.angle``, or ``T2``.

    Returns:
        The derivation.

    Raises:
        KeyError: there is none.
    """
    for one in derivations():
        if name.casefold() in names(one):
            return one
    raise KeyError(name)


def selected(pattern: str = "*") -> tuple[Derivation | Erratum, ...]:
    """Derivations, then errata, whose id or theorem number matches a shell pattern, in either case."""
    return tuple(
        one for one in (*derivations(), *errata()) if any(fnmatchcase(name, pattern.casefold()) for name in names(one))
    )


def prove_one(item: Derivation | Erratum) -> Result:
    """Execute one derivation or erratum."""
    if isinstance(item, Erratum):
        return Result("erratum", item.statement, item.where, item.prove())
    return Result("theorem", f"{item.theorem}. {item.statement}", item.source, item.prove())


def prove_all(pattern: str = "*") -> Iterator[Result]:
    """Execute derivations and errata one by one.

    Args:
        pattern: shell pattern on the ids; a theorem number selects it as well.

    Yields:
        A result as soon as it is there.
    """
    for item in selected(pattern):
        yield prove_one(item)
