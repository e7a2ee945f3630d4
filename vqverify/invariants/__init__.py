"""The catalogue: one module a subject; importing this package registers every row, in this order."""

from importlib import import_module

MODULES = (
    "interface",
    "interface_purity",
    "interface_batching",
    "interface_formats",
    "interface_edges",
    "interface_arguments",
    "interface_lifecycle",
    "interface_autograd",
    "interface_precision",
    "lookup",
    "lookup_cells",
    "lookup_codes",
    "lookup_cosine",
    "rotation",
    "estimator",
    "estimator_paths",
    "gap",
    "loss",
    "loss_paths",
    "loss_terms",
    "loss_limits",
    "loss_entropy",
    "update",
    "update_start",
    "update_state",
    "update_learnt",
    "update_expiry",
    "update_affine",
    "update_distributed",
    "update_kmeans",
    "stochastic",
    "stochastic_law",
    "residual",
    "residual_distortion",
    "structure",
    "fsq",
    "fsq_gradient",
    "metrics",
    "honesty",
)

for _name in MODULES:
    import_module(f"vqverify.invariants.{_name}")
