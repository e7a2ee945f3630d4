"""What is compared: ours, the bare matrix product, and what users have otherwise."""

from __future__ import annotations

import torch

from vqverify.reference import nearest_codes

SHAPES = [(n, k, d) for n in (4096, 65536) for k in (512, 1024, 8192) for d in (8, 32, 64, 256)]


def data(n: int, k: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)


def ours(z, codes):
    return nearest_codes(z, codes)


def product_buffered(z, codes):
    """The product alone, into a reused buffer of 4 MiB: the baseline of the project's measurements."""
    k = len(codes)
    rows = max(16, 2**22 // (4 * k))
    right, buffer = codes.t().contiguous(), torch.empty(min(rows, len(z)), k)
    bias = torch.zeros(k)
    for part in z.split(rows):
        torch.addmm(bias, part, right, out=buffer[: len(part)])


def product_tiled(z, codes):
    """The product alone without bias, in tiles of 1 MiB that stay in cache: the hardest baseline."""
    k = len(codes)
    columns = min(k, 1024)
    rows = 2**18 // columns
    right, buffer = codes.t().contiguous(), torch.empty(rows * columns)
    for j in range(0, k, columns):
        block = right[:, j : j + columns]
        for part in z.split(rows):
            torch.mm(part, block, out=buffer[: len(part) * columns].view(len(part), columns))


def product_full(z, codes):
    """`z @ codes.T` as one writes it: the whole N x K matrix."""
    return z @ codes.t()


def cdist_argmin(z, codes):
    return torch.cdist(z, codes).argmin(1)


def addmm_argmin(z, codes):
    return torch.addmm(codes.square().sum(1), z, codes.t(), alpha=-2).argmin(1)


def vq_pytorch(dim: int, size: int, **kwargs):
    """The layer of vector-quantize-pytorch with the same codes, in eval mode: its lookup is most of it."""
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(dim=dim, codebook_size=size, **kwargs)


def faiss_flat(codes):
    """A search function of faiss's flat index, or None where faiss is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codes.shape[1])
    # below this size faiss takes a slow direct path, and the comparison would flatter us
    faiss.cvar.distance_compute_blas_threshold = 1
    index.add(codes.numpy())
    return lambda z: index.search(z.numpy(), 1)[1]
