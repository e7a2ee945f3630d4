"""Any quantization layer behind the one signature that a training needs, read by the shapes of what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vqverify.reference import Quantized


class UnreadableLayerError(TypeError):
    """What a layer returned holds no quantized latents."""


class Adapted(nn.Module):
    """A layer that takes latents (B, N, D) and returns :class:`vqverify.reference.Quantized`.

    The layer inside may take (B, N, D), or images (B, D, H, W) if it refuses the former, and may return a tensor, a
    tuple or a mapping: z_q is the floating-point tensor with the shape of the latents, codes the integer tensor, the
    loss the scalar that takes part in the graph (else the first scalar, else 0).

    Attributes:
        inner: the layer.
        size: K, the number of codes.
    """

    def __init__(self, inner: nn.Module, size: int) -> None:
        super().__init__()
        self.inner = inner
        self.size = size
        self._images: bool | None = None

    def forward(self, z: Tensor) -> Quantized:
        """Quantize latents (B, N, D).

        Raises:
            UnreadableLayerError: if the layer returned nothing of the shape of the latents.
        """
        if self._images is None:
            self._images = self._wants_images(z)
        if not self._images:
            return _read(self.inner(z), z)
        batch, positions, dim = z.shape
        image = z.transpose(1, 2).reshape(batch, dim, positions, 1)
        z_q, codes, loss = _read(self.inner(image), image)
        return Quantized(z_q.reshape(batch, dim, positions).transpose(1, 2), codes.reshape(batch, -1), loss)

    @torch.no_grad()
    def codebook(self, z: Tensor, z_q: Tensor) -> Tensor:
        """Return the codes (K, D) that ``z`` is compared with, or the values that ``z_q`` shows where none are kept."""
        effective = getattr(self.inner, "effective_codebook", None)
        if effective is not None:
            return effective().detach()
        for value in (*self.inner.parameters(), *self.inner.buffers()):
            if value.shape == (self.size, z.shape[-1]):
                return value.detach()
        return z_q.reshape(-1, z.shape[-1]).unique(dim=0)

    @torch.no_grad()
    def _wants_images(self, z: Tensor) -> bool:
        """Whether the layer refuses (B, N, D) and takes images; what it refuses both with is raised."""
        training = self.inner.training
        self.inner.eval()  # a pass in training would already learn
        refusals = (RuntimeError, IndexError, ValueError, AssertionError)
        try:
            self.inner(z[:2])
        except refusals as error:
            try:
                self.inner(z[:2].transpose(1, 2).unsqueeze(-1))
            except refusals:
                raise error from None
            return True
        finally:
            self.inner.train(training)
        return False


def _read(output: Any, z: Tensor) -> Quantized:
    """Find z_q, codes and loss in what a layer returned."""
    tensors = list(_tensors(output))
    floats = [t for t in tensors if t.dtype.is_floating_point]
    z_q = next((t for t in floats if t.shape == z.shape), None)
    if z_q is None:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors) or "nothing"
        raise UnreadableLayerError(f"the layer must return a tensor of shape {tuple(z.shape)}; it returned {shapes}")
    scalars = [t for t in floats if t.numel() == 1 and t is not z_q]
    loss = next((t for t in scalars if t.requires_grad), scalars[0] if scalars else z.new_zeros(()))
    codes = next((t for t in tensors if not t.dtype.is_floating_point and t.dtype != torch.bool), None)
    if codes is None:
        codes = torch.full(z.shape[:-1], -1)
    return Quantized(z_q, codes, loss.reshape(()))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)
