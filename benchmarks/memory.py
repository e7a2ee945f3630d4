"""Memory beyond inputs, outputs and one copy of the codebook."""

from __future__ import annotations

import traceback

from benchmarks import _measure
from benchmarks._table import Case, Table, by_name, track

LOOKUPS = by_name(
    Case(4096, 8192, 64),
    Case(16384, 2048, 64),
    Case(65536, 1024, 256),
    Case(16384, 2048, 64, "clusters"),
    Case(16384, 2048, 64, "cdist"),
    Case(65536, 8192, 64, device="cuda"),
)


def extra(case: Case) -> int:
    """Return the peak of what a lookup allocates or keeps, less its indices and one copy of the codebook, in bytes."""
    from benchmarks import _cases
    from vqverify.reference._products import KEPT_BYTES

    z, codes = _cases.tensors(case)
    if case.method == "clusters":
        z[::2] += 1000
        codes[::2] += 1000
    lookup = _cases.cdist_argmin if case.method == "cdist" else _cases.ours
    found = _measure.peak_bytes(lambda: lookup(z, codes), case.device)
    if case.device == "cpu" and case.method != "cdist":
        found += KEPT_BYTES  # allocated before, by the warm-up
    return found - 8 * len(z) - codes.element_size() * codes.numel()


def saved(method: str) -> float:
    """Return the floats that an estimator keeps for its backward pass beside z and q, a latent element."""
    import torch

    from vqverify.reference import rotate, straight_through

    z, q = torch.randn(256, 32, requires_grad=True), torch.randn(256, 32)
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        {"rotation": rotate, "straight-through": straight_through}[method](z, q)
    own = {z.untyped_storage().data_ptr(), q.untyped_storage().data_ptr()}
    return sum(size for pointer, size in kept.items() if pointer not in own) / (4 * z.numel())


def measured() -> Table:
    import torch

    torch.set_num_threads(1)
    table: Table = {}
    for name, case in LOOKUPS.items():
        if case.device == "cuda" and not torch.cuda.is_available():
            continue
        try:
            size = case.n * case.k * 4
            table[name] = {"bytes": (found := extra(case)), "share": found / size}
        except Exception:  # noqa: BLE001 - the other cases are still worth measuring
            table[name] = {"error": traceback.format_exc()}
    return table


def gate():
    """Bytes, and floats an element: each is a number, and lower is better."""
    cases = by_name(Case(2048, 1024, 64), Case(2048, 1024, 64, "clusters"))
    values = {f"lookup {name}": lambda case=case: extra(case) for name, case in cases.items()}
    for method in ("rotation", "straight-through"):
        values[f"saved for backward, {method}"] = lambda method=method: saved(method)
    return values


class Memory:
    params = (list(LOOKUPS),)
    param_names = ("case",)
    timeout = 300

    def setup_cache(self):
        return measured()

    track_extra_bytes = track(
        "Memory: extra bytes of a lookup",
        "bytes",
        "bytes",
        "Peak of what a lookup allocates, less its indices and one copy of the codebook. cdist: torch's, for comparison.",
    )
    track_share_of_matrix = track(
        "Memory: extra bytes over the N x K matrix's",
        "x matrix",
        "share",
        "The same over the float32 matrix of all distances, which a lookup need not hold.",
    )
