"""What a layer declares, against what probing found."""

from __future__ import annotations

from collections.abc import Iterator

from vqverify.bounds import Clause, holds
from vqverify.case import Case
from vqverify.invariant import Undetermined, invariant
from vqverify.quantizer import Quantizer
from vqverify.subject.claims import honesty


def claimed(subject: Quantizer) -> tuple[str, ...]:
    """Names of everything that is claimed: a case each."""
    return tuple(subject.claims)


@invariant(
    "honesty.traits",
    source="design: claims and identification",
    mode="table",
    parts=claimed,
    corners=("single",),
    mutants=("silent_straight_through", "sphere_decay_swapped"),
    hint="the layer is not what its arguments say: an option that is read and not acted on, or acted on the other way round; "
    "a weight on the other term, or that term detached on the wrong side.",
)
def traits(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """What a layer's arguments or adapter declare is what probing finds."""
    for name, status, label, message in honesty(subject.claims, subject.found):
        if name == case.part and status == "undetermined":
            raise Undetermined(message)
        if name == case.part:
            yield holds(status == "passed", label, message)
