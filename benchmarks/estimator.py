"""Gradient estimators, forward and backward, against memory bandwidth and the plain expression."""

from __future__ import annotations

from benchmarks._table import Case, by_name, measured, track

CASES = by_name(
    *(Case(65536, 1, 64, method) for method in ("rotation", "straight-through", "hessian", "exact")),
    *(Case(n, 1, d, "rotation") for n, d in ((4096, 64), (65536, 8), (16384, 256), (65536, 256))),
    Case(65536, 1, 64, "rotation", threads=2),
    Case(65536, 1, 64, "rotation", "float64"),
    Case(65536, 1, 64, "rotation", "bfloat16"),
    Case(65536, 1, 256, "rotation", device="cuda"),
    Case(65536, 1, 256, "rotation", "bfloat16", device="cuda"),
    Case(65536, 1, 256, "straight-through", device="cuda"),
)


def work(case: Case, *, beside: bool = True):
    """Ours, a copy of the least bytes, `z + (q - z).detach()`, and vector-quantize-pytorch's rotation."""
    import torch

    from benchmarks import _cases
    from vqverify.reference import exact_loss, hessian_loss, rotate, straight_through

    z, _ = _cases.tensors(case)
    generator = torch.Generator().manual_seed(1)
    q, g = (torch.randn(case.n, case.d, generator=generator).to(z) for _ in range(2))
    z.requires_grad_()

    def decoder(x):
        return (x.square().square() * g).sum()

    ours = {
        "rotation": lambda: torch.autograd.grad(rotate(z, q), z, g),
        "straight-through": lambda: torch.autograd.grad(straight_through(z, q), z, g),
        "hessian": lambda: torch.autograd.grad(hessian_loss(decoder, z, q), z),
        "exact": lambda: torch.autograd.grad(exact_loss(decoder, z, q), z),
    }
    found = {"ours": ours[case.method]}
    if not beside:
        return found
    # forward: read q, write it; backward: read z, q and g, write the gradient (straight-through moves no more than g)
    passes = 4 if case.method == "straight-through" else 6
    found["limit"] = _cases.traffic(passes * case.n * case.d * _cases.width(case), case.device)
    if case.method in {"rotation", "straight-through"}:
        found["plain"] = lambda: torch.autograd.grad(z + (q - z).detach(), z, g)
    if case.method == "rotation":
        theirs = _cases.vq_pytorch_rotation()
        if theirs is not None:
            found["vector-quantize-pytorch"] = lambda: torch.autograd.grad(theirs(z, q), z, g)
    return found


def gate():
    """Cases that stay in cache, for the gate."""
    methods = ("rotation", "straight-through", "hessian", "exact")
    cases = by_name(*(Case(512, 1, 32, m) for m in methods), Case(512, 1, 32, "rotation", "bfloat16"))
    return {name: lambda case=case: work(case, beside=False)["ours"] for name, case in cases.items()}


class Estimator:
    params = (list(CASES),)
    param_names = ("case",)
    timeout = 900

    def setup_cache(self):
        return measured(CASES, work)

    track_seconds = track(
        "Estimator: time forward and backward",
        "s",
        "seconds",
        "A gradient estimator on N latents of D entries, forward and backward: least time of a call.",
    )
    track_over_limit = track(
        "Estimator: time over that of moving its bytes",
        "x copy",
        "limit",
        "Time over a copy of as many bytes as must be read and written at least. Median of paired calls.",
    )
    track_over_plain = track(
        "Estimator: time over z + (q - z).detach()",
        "x plain",
        "plain",
        "Time over the plain straight-through expression, forward and backward. Median of paired calls.",
    )
    track_over_vector_quantize_pytorch = track(
        "Estimator: time over vector-quantize-pytorch's rotation",
        "x theirs",
        "vector-quantize-pytorch",
        "Time of the rotation over that of vector-quantize-pytorch's rotate_to. Median of paired calls.",
    )
