"""What is compared: data, the limits of the machine, and what users have otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqverify.reference import nearest_codes

if TYPE_CHECKING:
    from benchmarks._measure import Work
    from benchmarks._table import Case

SHAPES = [(n, k, d) for n in (4096, 65536) for k in (512, 1024, 8192) for d in (8, 32, 64, 256)]


def data(n: int, k: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return standard normal latents (N, D) and codes (K, D), float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)


def tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the data of a case, in its dtype on its device."""
    dtype = getattr(torch, case.dtype)
    z, codes = (t.to(case.device, dtype) for t in data(case.n, case.k, case.d))
    return z, codes


def ours(z, codes):
    return nearest_codes(z, codes)


# Limits: what the operation cannot be faster than.


def product_buffered(z, codes):
    """The product alone, into a reused buffer of 4 MiB: the baseline of the project's measurements."""
    k = len(codes)
    rows = max(16, 2**22 // (4 * k))
    right, buffer = codes.t().contiguous(), codes.new_empty(min(rows, len(z)), k)
    bias = codes.new_zeros(k)
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


def product(case: Case) -> Work:
    """The product of the case's size: float32 at least, since an exact index needs that; on CUDA the whole matrix."""
    z, codes = tensors(case)
    wide = torch.promote_types(z.dtype, torch.float32)
    z, codes = z.to(wide), codes.to(wide)
    return lambda: (product_full if z.is_cuda else product_buffered)(z, codes)


def traffic(nbytes: int, device: str = "cpu") -> Work:
    """A copy that reads and writes ``nbytes`` in all: the bandwidth limit of what moves so many bytes."""
    source = torch.zeros(max(1, nbytes // 2), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def width(case: Case) -> int:
    """Bytes of an element."""
    return torch.finfo(getattr(torch, case.dtype)).bits // 8


# Peers.


def cdist_argmin(z, codes):
    return torch.cdist(z, codes).argmin(1)


def addmm_argmin(z, codes):
    return torch.addmm(codes.square().sum(1), z, codes.t(), alpha=-2).argmin(1)


def vq_pytorch(dim: int, size: int, **kwargs):
    """The layer of vector-quantize-pytorch, or None where it is not installed."""
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        return None
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


def vq_pytorch_rotation():
    """Its rotation trick (z, q) -> z_q, or None where it is not installed."""
    try:
        from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to
    except ImportError:
        return None
    return rotate_to
