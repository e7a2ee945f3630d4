"""The moving-average update of a codebook, against memory bandwidth and the one-hot product."""

from __future__ import annotations

from benchmarks._table import Case, by_name, measured, track

CASES = by_name(
    *(Case(n, k, d, "ema") for n, k, d in ((4096, 1024, 64), (4096, 8192, 64), (65536, 1024, 8), (65536, 16384, 256))),
    Case(4096, 1024, 64, "memoryless"),
    Case(4096, 1024, 64, "statistics"),
    Case(4096, 1024, 64, "ema", "bfloat16"),
    Case(4096, 1024, 64, "ema", threads=2),
    Case(65536, 1024, 64, "ema", device="cuda"),
)


def work(case: Case, *, beside: bool = True):
    """Ours, a copy of the least bytes, and the same statistics by a one-hot matrix."""
    import torch

    from benchmarks import _cases
    from vqverify.reference import EmaState, code_statistics, ema_update, memoryless_update

    z, codebook = _cases.tensors(case)
    codes = torch.randint(case.k, (case.n,), generator=torch.Generator().manual_seed(1)).to(z.device)
    wide = torch.promote_types(z.dtype, torch.float32)
    state = EmaState(codebook, codebook.new_ones(case.k, dtype=wide), codebook.to(wide, copy=True))

    def one_hot():
        matrix = torch.nn.functional.one_hot(codes, case.k).to(z.dtype)
        return matrix.sum(0), matrix.t() @ z

    ours = {
        "statistics": lambda: code_statistics(z, codes, case.k),
        "ema": lambda: ema_update(state, code_statistics(z, codes, case.k), 0.99),
        "memoryless": lambda: memoryless_update(codebook, code_statistics(z, codes, case.k), 0.01),
    }
    found = {"ours": ours[case.method]}
    if not beside:
        return found
    # read latents and indices; read and write codes and, with averages, sums
    tables = {"statistics": 1, "ema": 4, "memoryless": 2}[case.method]
    least = (case.n + tables * case.k) * case.d * _cases.width(case) + 8 * case.n
    found["limit"] = _cases.traffic(least, case.device)
    if case.n * case.k <= 2**26:
        found["one-hot"] = one_hot
    return found


def gate():
    """Cases that stay in cache, for the gate."""
    cases = by_name(Case(2048, 256, 32, "ema"), Case(2048, 256, 32, "memoryless"), Case(2048, 256, 32, "statistics"))
    return {name: lambda case=case: work(case, beside=False)["ours"] for name, case in cases.items()}


class Update:
    params = (list(CASES),)
    param_names = ("case",)
    timeout = 900

    def setup_cache(self):
        return measured(CASES, work)

    track_seconds = track(
        "Codebook update: time",
        "s",
        "seconds",
        "Counts and sums of a batch and the new codes: least time of a call.\n"
        "statistics: counts and sums alone; memoryless: codes move without accumulators.",
    )
    track_over_limit = track(
        "Codebook update: time over that of moving its bytes",
        "x copy",
        "limit",
        "Time over a copy of as many bytes as must be read and written at least. Median of paired calls.",
    )
    track_over_one_hot = track(
        "Codebook update: time over the one-hot product's",
        "x one-hot",
        "one-hot",
        "Time over counts and sums by a one-hot matrix, as most libraries compute them. Median of paired calls.",
    )
