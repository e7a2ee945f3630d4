"""Layers that are wrong in ways that must not stop discovery."""

from __future__ import annotations

import sys
import warnings
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Good(nn.Module):
    def __init__(self, dim: int = 6, size: int = 14) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(size, dim))

    def forward(self, x: Tensor) -> Any:
        ids = torch.cdist(x, self.book[None]).argmin(-1)
        hard = self.book[ids]
        return x + (hard - x).detach(), ids, F.mse_loss(x, hard.detach()) + F.mse_loss(hard, x.detach())

    def decode(self, ids: Tensor) -> Tensor:
        return self.book[ids]


class Constant(Good):
    def forward(self, x: Tensor) -> Any:
        return torch.zeros_like(x), torch.zeros(x.shape[:2], dtype=torch.long), x.sum() * 0


class RaisesAlways(Good):
    def forward(self, x: Tensor) -> Any:
        raise RuntimeError("out of luck")


class RaisesInTrain(Good):
    def forward(self, x: Tensor) -> Any:
        if self.training:
            raise RuntimeError("no training today")
        return super().forward(x)


class RaisesInEval(Good):
    def forward(self, x: Tensor) -> Any:
        if not self.training:
            raise RuntimeError("only training today")
        return super().forward(x)


class Nan(Good):
    def forward(self, x: Tensor) -> Any:
        z_q, ids, loss = super().forward(x)
        return z_q * float("nan"), ids, loss


class Hidden(Good):
    """Keeps state between calls where nobody can restore it."""

    calls: ClassVar[list[int]] = [0]

    def forward(self, x: Tensor) -> Any:
        self.calls[0] += 1
        z_q, ids, loss = super().forward(x)
        return z_q + 0.01 * self.calls[0], ids, loss


class Reseeds(Good):
    def forward(self, x: Tensor) -> Any:
        torch.manual_seed(0)
        return super().forward(x)


class Soft(Good):
    def forward(self, x: Tensor) -> Any:
        weights = (-torch.cdist(x, self.book[None])).softmax(-1)
        return weights @ self.book, weights.argmax(-1), F.mse_loss(weights @ self.book, x)


class Shifted(Good):
    def forward(self, x: Tensor) -> Any:
        z_q, ids, loss = super().forward(x)
        return z_q, ids + 1, loss


class Argmax(Good):
    def forward(self, x: Tensor) -> Any:
        ids = torch.cdist(x, self.book[None]).argmax(-1)
        hard = self.book[ids]
        return x + (hard - x).detach(), ids, F.mse_loss(x, hard.detach())


class Exits(Good):
    def forward(self, x: Tensor) -> Any:
        sys.exit(3)


class Noisy(Good):
    def forward(self, x: Tensor) -> Any:
        print("hello")
        warnings.warn("careful", stacklevel=2)
        return super().forward(x)


class WrongDecoder(Good):
    def decode(self, ids: Tensor) -> Tensor:
        return self.book[ids].transpose(1, 2)

    def explode(self, ids: Tensor) -> Tensor:
        rows = self.book[ids]
        return rows.view(3, 5, 7, 11)

    def forget(self, keep: Tensor) -> None:
        with torch.no_grad():
            self.book.zero_()


class NoOutput(nn.Module):
    """Returns the mean alone."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.w = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w(x).mean()


class NeedsMore(Good):
    def forward(self, x: Tensor, rate: int, bandwidth: float) -> Any:  # type: ignore[override]
        return super().forward(x)


class NeedsCondition(Good):
    def forward(self, x: Tensor, condition: Tensor) -> Any:  # type: ignore[override]
        if condition.shape != x.shape:
            raise ValueError("one condition a latent")
        return super().forward(x)


class CodesAlone(Good):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[1]


class LogitsIn(nn.Module):
    """Takes K logits and returns codes of D entries; in eval mode any number of channels passes (DALLE-pytorch)."""

    def __init__(self, num_tokens: int = 16, width: int = 6) -> None:
        super().__init__()
        self.codes = nn.Embedding(num_tokens, width)

    def forward(self, logits: Tensor) -> Any:
        if self.training:
            logits = logits @ torch.eye(len(self.codes.weight))
        ids = logits.argmax(-1) % len(self.codes.weight)
        return self.codes(ids), ids


class EvenOnly(Good):
    def forward(self, x: Tensor) -> Any:
        if x.shape[1] % 4:
            raise ValueError("the length must be a multiple of 4")
        return super().forward(x)


class WrongBits(nn.Module):
    """Signs whose code is unpacked from the other end: all values of z_q, at other places."""

    def __init__(self, bits: int = 5) -> None:
        super().__init__()
        self.register_buffer("powers", 2 ** torch.arange(bits))

    def forward(self, x: Tensor) -> Any:
        hard = torch.where(x > 0, 1.0, -1.0).to(x)
        return x + (hard - x).detach(), ((hard > 0) * self.powers).sum(-1)

    def decode(self, codes: Tensor) -> Tensor:
        return 2.0 * (codes[..., None] // self.powers.flip(0) % 2) - 1
