"""Residual stacks: training steps of several levels."""

from __future__ import annotations

from benchmarks._table import Case, by_name, measured, track

CASES = by_name(
    *(Case(4096, 1024, 64, f"{levels} levels") for levels in (2, 4, 8)),
    Case(1024, 512, 8, "4 levels"),
    Case(4096, 1024, 64, "4 levels", threads=2),
    Case(65536, 1024, 64, "8 levels", device="cuda"),
)


def work(case: Case, *, beside: bool = True):
    """Ours, the products and copies that it contains, and vector-quantize-pytorch's."""
    from benchmarks import _cases
    from benchmarks.layer import step
    from vqverify.reference import ResidualVQ

    levels = int(case.method.split()[0])
    z, codes = _cases.tensors(case)
    z.requires_grad_()
    stack = ResidualVQ(case.d, case.k, num_quantizers=levels, learning="none").to(case.device)
    for i, level in enumerate(stack.levels):
        level.set_codebook(codes / 2**i)
    found = {"ours": step(stack, z)}
    if not beside:
        return found
    product = _cases.product(case)
    copies = _cases.traffic(8 * levels * case.n * case.d * _cases.width(case), case.device)
    found["limit"] = lambda: ([product() for _ in range(levels)], copies())
    try:
        from vector_quantize_pytorch import ResidualVQ as Theirs
    except ImportError:
        return found
    theirs = Theirs(dim=case.d, codebook_size=case.k, num_quantizers=levels).to(case.device)
    found["vector-quantize-pytorch"] = step(theirs, z)
    return found


def gate():
    """A case that stays in cache, for the gate."""
    cases = by_name(Case(128, 64, 16, "3 levels"))
    return {name: lambda case=case: work(case, beside=False)["ours"] for name, case in cases.items()}


class Stack:
    params = (list(CASES),)
    param_names = ("case",)
    timeout = 900

    def setup_cache(self):
        return measured(CASES, work)

    track_seconds = track(
        "Residual stack: time of a step",
        "s",
        "seconds",
        "Forward and backward pass of a residual stack with fixed codebooks: least time of a step.",
    )
    track_over_limit = track(
        "Residual stack: time over products and copies",
        "x roof",
        "limit",
        "Time over one matrix product a level and the copies that a step cannot do without. Median of paired calls.",
    )
    track_over_vector_quantize_pytorch = track(
        "Residual stack: time over vector-quantize-pytorch's",
        "x theirs",
        "vector-quantize-pytorch",
        "Time over a step of its ResidualVQ in train mode, which also updates its codebooks. Median of paired calls.",
    )
