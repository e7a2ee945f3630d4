"""The catalogue: one module a subject; importing this package registers every row."""

from vqverify.invariants import (  # noqa: F401  (each import registers its rows)
    interface,
    lookup,
    estimator,
    rotation,
    gap,
    loss,
    update,
    stochastic,
    structure,
    honesty,
)
