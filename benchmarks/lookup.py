"""The certified exact lookup, against the matrix product and other libraries."""

from __future__ import annotations

from benchmarks._table import Case, by_name, measured, track

CENTRE = Case(4096, 1024, 64)
CASES = by_name(
    CENTRE,
    Case(1024, 512, 8),
    Case(4096, 512, 8),
    Case(4096, 8192, 64),
    Case(4096, 1024, 256),
    Case(65536, 1024, 64),
    Case(65536, 16384, 256, threads=2),
    Case(4096, 1024, 64, threads=2),
    Case(4096, 1024, 64, "cosine"),
    Case(512, 256, 64, "half first"),
    Case(4096, 1024, 64, dtype="float64"),
    Case(4096, 1024, 64, dtype="bfloat16"),
    Case(4096, 8192, 3, "tree"),
    Case(8192, 512, 8, "clusters"),
    Case(512, 128, 8, "ties", "bfloat16"),
    Case(65536, 1024, 64, device="cuda"),
    Case(65536, 16384, 256, device="cuda"),
    Case(65536, 1024, 64, dtype="bfloat16", device="cuda"),
)


def work(case: Case, *, beside: bool = True):
    """Ours, the product of the same size, and peers that find (nearly) the same codes."""
    import torch

    from benchmarks import _cases
    from vqverify.reference import nearest_codes, nearest_codes_lower_precision

    z, codes = _cases.tensors(case)
    if case.method == "clusters":  # the fast pass proves little
        z[::2] += 1000
        codes[::2] += 1000
    elif case.method == "ties":  # the bfloat16 grid at 1000 is full of them
        z, codes = z + 1000, codes + 1000
    metric = "cosine" if case.method == "cosine" else "euclidean"
    found = {"ours": lambda: nearest_codes(z, codes, metric)}
    if case.method == "half first":
        found["ours"] = lambda: nearest_codes_lower_precision(z, codes)
    if not beside:
        return found
    found["limit"] = _cases.product(case)
    plain = case.method == "euclidean" and case.dtype == "float32"
    if plain and case.n * case.k <= 2**26:
        found["cdist"] = lambda: _cases.cdist_argmin(z, codes)
        found["addmm"] = lambda: _cases.addmm_argmin(z, codes)
        theirs = _cases.vq_pytorch(case.d, case.k)
        if theirs is not None:
            theirs = theirs.to(case.device).eval()
            found["vector-quantize-pytorch"] = torch.no_grad()(lambda: theirs(z))
    search = _cases.faiss_flat(codes) if plain and case.device == "cpu" else None
    if search:
        found["faiss"] = lambda: search(z)
    return found


def gate():
    """Cases that stay in cache, for the gate."""
    cases = (
        Case(1024, 256, 64),
        Case(1024, 512, 8),
        Case(512, 512, 32, "cosine"),
        Case(1024, 256, 64, dtype="bfloat16"),
        Case(512, 2048, 3, "tree"),
        Case(1024, 256, 8, "clusters"),
    )
    return {name: lambda case=case: work(case, beside=False)["ours"] for name, case in by_name(*cases).items()}


class Lookup:
    params = (list(CASES),)
    param_names = ("case",)
    timeout = 900

    def setup_cache(self):
        return measured(CASES, work)

    track_seconds = track(
        "Lookup: time",
        "s",
        "seconds",
        "Exact nearest-code lookup, N latents among K codes in D dimensions: least time of a call.\n"
        "half first: ranked in bfloat16, proved or repaired. tree: k-d tree. clusters, ties: little can be proved.",
    )
    track_over_limit = track(
        "Lookup: time over the matrix product's",
        "x product",
        "limit",
        "Time of the lookup over that of the bare N x K x D matrix product, which an exact lookup cannot do without.\n"
        "Below 1 where a tree or a smaller dtype avoids it. Median of paired calls.",
    )
    track_over_cdist = track(
        "Lookup: time over cdist + argmin's",
        "x cdist",
        "cdist",
        "Time over that of torch.cdist(z, codes).argmin(1): below 1, ours is faster. Median of paired calls.",
    )
    track_over_addmm = track(
        "Lookup: time over addmm + argmin's",
        "x addmm",
        "addmm",
        "Time over that of (|c|^2 - 2 z.c).argmin(1): below 1, ours is faster. Median of paired calls.",
    )
    track_over_vector_quantize_pytorch = track(
        "Lookup: time over vector-quantize-pytorch's eval pass",
        "x theirs",
        "vector-quantize-pytorch",
        "Time over that of its VectorQuantize in eval mode, most of which is a lookup. Median of paired calls.",
    )
    track_over_faiss = track(
        "Lookup: time over faiss's",
        "x faiss",
        "faiss",
        "Time over that of faiss-cpu's flat index (through its BLAS path at every size). Median of paired calls.",
    )
