"""The catalogue: one module a subject; importing this package registers every row."""

from vqverify.invariants import (  # noqa: F401  (each import registers its rows)
    interface,
    interface_purity,
    interface_batching,
    interface_formats,
    interface_edges,
    interface_arguments,
    interface_lifecycle,
    interface_autograd,
    interface_precision,
    lookup,
    estimator,
    rotation,
    gap,
    loss,
    update,
    stochastic,
    residual,
    fsq,
    structure,
    honesty,
)
