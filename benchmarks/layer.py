"""Whole training steps: lookup, estimator, loss, backward, codebook update."""

from __future__ import annotations

from benchmarks._table import Case, by_name, measured, track

OPTIONS = {
    "rotation": {},
    "straight-through": {"estimator": "straight-through"},
    "gradient": {"learning": "gradient"},
    "cosine": {"metric": "cosine"},
    "affine": {"learning": "gradient", "affine": "learnable", "estimator": "straight-through"},
    "synchronized": {"learning": "gradient", "synchronized": 2.0, "estimator": "straight-through"},
}
CASES = by_name(
    *(Case(4096, 1024, 64, method) for method in OPTIONS),
    Case(1024, 512, 8, "rotation"),
    Case(4096, 8192, 64, "rotation"),
    Case(16384, 1024, 256, "rotation"),
    Case(4096, 1024, 64, "rotation", threads=2),
    Case(4096, 1024, 64, "rotation", "bfloat16"),
    Case(65536, 1024, 64, "rotation", device="cuda"),
    Case(65536, 8192, 256, "rotation", "bfloat16", device="cuda"),
)


def step(layer, z):
    """A training step of a layer that returns z_q, codes, loss (ours and vector-quantize-pytorch's do)."""

    def run():
        out = layer(z)
        (out[0].square().sum() + out[2]).sum().backward()
        z.grad = None
        layer.zero_grad()

    return run


def work(case: Case, *, beside: bool = True):
    """Ours, the product and the copies that it contains, ours with straight-through, vector-quantize-pytorch's."""
    from benchmarks import _cases
    from vqverify.reference import VectorQuantizer

    z, codes = _cases.tensors(case)
    z.requires_grad_()

    def layer(**options):
        built = VectorQuantizer(case.d, case.k, **options).to(case.device)
        built.set_codebook(codes.float())
        return step(built.to(z.dtype), z)

    found = {"ours": layer(**OPTIONS[case.method])}
    if not beside:
        return found
    product = _cases.product(case)
    # the estimator's six passes, two of the loss, and the update's tables
    copies = _cases.traffic((8 * case.n + 4 * case.k) * case.d * _cases.width(case), case.device)
    found["limit"] = lambda: (product(), copies())
    if case.method == "rotation":
        found["straight-through"] = layer(estimator="straight-through")
    if case.method in {"rotation", "straight-through"} and case.n * case.k <= 2**26 and case.dtype == "float32":
        theirs = _cases.vq_pytorch(case.d, case.k, rotation_trick=case.method == "rotation")
        if theirs is not None:
            found["vector-quantize-pytorch"] = step(theirs.to(case.device), z)
    return found


def gate():
    """Cases that stay in cache, for the gate."""
    cases = by_name(*(Case(256, 128, 32, method) for method in OPTIONS))
    return {name: lambda case=case: work(case, beside=False)["ours"] for name, case in cases.items()}


class Layer:
    params = (list(CASES),)
    param_names = ("case",)
    timeout = 900

    def setup_cache(self):
        return measured(CASES, work)

    track_seconds = track(
        "Layer: time of a training step",
        "s",
        "seconds",
        "Lookup, estimator, losses, backward pass and codebook update of one layer: least time of a step.\n"
        "gradient: the codes are a parameter; affine, synchronized: Huh et al. 2023.",
    )
    track_over_limit = track(
        "Layer: time of a step over product and copies",
        "x roof",
        "limit",
        "Time over the matrix product and the copies that a step cannot do without. Median of paired calls.",
    )
    track_over_straight_through = track(
        "Layer: time of a step over straight-through's",
        "x STE",
        "straight-through",
        "What the rotation costs: time over the same layer with straight-through. Median of paired calls.",
    )
    track_over_vector_quantize_pytorch = track(
        "Layer: time of a step over vector-quantize-pytorch's",
        "x theirs",
        "vector-quantize-pytorch",
        "Time over its VectorQuantize with the same estimator, in train mode. Median of paired calls.",
    )
