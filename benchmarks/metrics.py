"""Measures of a codebook and of reconstructions, against what they contain at least."""

from __future__ import annotations

from benchmarks._table import Case, by_name, measured, track

CASES = by_name(
    Case(65536, 1024, 64, "perplexity"),
    Case(65536, 1024, 64, "quantization error"),
    Case(4096, 1024, 64, "divergence"),
    Case(16, 1, 64, "ssim"),
    Case(2048, 1, 64, "frechet distance"),
    Case(65536, 1024, 64, "perplexity", device="cuda"),
)


def work(case: Case):
    """Ours, the limit, and for the perplexity the one-hot form that most training scripts have."""
    import torch

    from benchmarks import _cases
    from vqverify.reference import metrics

    z, codebook = _cases.tensors(case)
    codes = torch.randint(case.k, (case.n,), generator=torch.Generator().manual_seed(1)).to(z.device)
    q = codebook[codes]
    nbytes = case.n * case.d * _cases.width(case)
    if case.method == "perplexity":

        def one_hot():
            p = torch.nn.functional.one_hot(codes, case.k).float().mean(0)
            return torch.exp(-(p * (p + 1e-10).log()).sum())

        return {
            "ours": lambda: metrics.perplexity(metrics.code_counts(codes, case.k)),
            "limit": _cases.traffic(8 * case.n, case.device),
            "one-hot": one_hot,
        }
    if case.method == "quantization error":
        return {"ours": lambda: metrics.quantization_error(z, q), "limit": _cases.traffic(2 * nbytes)}
    if case.method == "divergence":
        return {"ours": lambda: metrics.divergence(z, codebook), "limit": _cases.product(case)}
    if case.method == "frechet distance":
        x, y = z.double(), z.flip(1).double() * 1.5
        return {"ours": lambda: metrics.frechet_distance(x, y), "limit": lambda: (x.t() @ x, y.t() @ y)}
    images = torch.rand(2, case.n, 3, case.d, case.d, generator=torch.Generator().manual_seed(2))
    return {"ours": lambda: metrics.ssim(*images), "limit": _cases.traffic(images.numel() * 4)}


def gate():
    """Cases that stay in cache and are ours, for the gate: an SSIM is torchmetrics' time, and varies by half."""
    cases = by_name(
        Case(4096, 256, 32, "perplexity"),
        Case(2048, 256, 32, "quantization error"),
        Case(1024, 256, 32, "divergence"),
    )
    return {name: lambda case=case: work(case)["ours"] for name, case in cases.items()}


class Metrics:
    params = (list(CASES),)
    param_names = ("case",)
    timeout = 900

    def setup_cache(self):
        return measured(CASES, work)

    track_seconds = track(
        "Metrics: time",
        "s",
        "seconds",
        "Perplexity of N codes, quantization error and divergence of N latents, SSIM of N images of D x D,\n"
        "Fréchet distance of N features of D entries: least time of a call.",
    )
    track_over_limit = track(
        "Metrics: time over its copy or product",
        "x limit",
        "limit",
        "Time over a copy of the bytes read, or the matrix product, that the measure contains. Median of paired calls.",
    )
    track_over_one_hot = track(
        "Metrics: perplexity's time over the one-hot form's",
        "x one-hot",
        "one-hot",
        "Time over exp(-sum p log(p + 1e-10)) with p the mean of a one-hot matrix. Median of paired calls.",
    )
