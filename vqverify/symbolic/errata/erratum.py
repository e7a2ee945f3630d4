"""What an erratum is: a printed claim, the right one, and one test that the right one passes and the printed fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vqverify.symbolic.derivation import Proof, Stated, Step, algebra, certificate, execute


@dataclass(frozen=True)
class Erratum:
    """An error of a paper.

    Attributes:
        id: ``paper.place``.
        where: paper and equation.
        printed: what is printed, in words.
        right: what is right.
        theorem: of the theory page that it follows from; empty for plain arithmetic.
        by: what the test decides.
        claims: the ``printed`` and the ``right`` claim, as formulas or exact numbers.
        test: decides a claim from the definitions, without floating point.
    """

    id: str
    where: str
    printed: str
    right: str
    theorem: str
    by: str
    claims: Stated
    test: Callable[[Any], bool]

    @property
    def statement(self) -> str:
        """The erratum in one sentence."""
        return f"printed: {self.printed}; right: {self.right}"

    @property
    def steps(self) -> tuple[Step, ...]:
        """Both sides of the proof: one test for the right and for the printed claim."""
        return (
            algebra(f"the right claim passes: {self.by}", lambda claims: self.test(claims["right"])),
            certificate("the printed claim fails the same test", lambda claims: not self.test(claims["printed"])),
        )

    def prove(self, claims: Stated | None = None) -> Proof:
        """Run the test on the right claim, which must pass, and on the printed one, which must fail."""
        return execute(self.id, self.steps, self.claims if claims is None else claims)


def against(printed: Any, right: Any) -> Stated:
    """The two claims by name."""
    return {"printed": printed, "right": right}
