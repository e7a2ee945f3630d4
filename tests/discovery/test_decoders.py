"""Decoders that return more than z_q, and such that leave a level out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqverify import check_quantizer

from .test_hostile import opened


class Tuple(nn.Module):
    """A residual stack whose decoder gives z_q, what it is the sum of, and the codes back (descript-audio-codec)."""

    def __init__(self, levels: int = 3, dim: int = 6, codebook_size: int = 12) -> None:
        super().__init__()
        self.books = nn.ParameterList([nn.Parameter(torch.randn(codebook_size, dim)) for _ in range(levels)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest, total, ids, loss = x, torch.zeros_like(x), [], torch.zeros(())
        for book in self.books:
            ids.append(torch.cdist(rest, book.expand(len(rest), -1, -1)).argmin(-1))
            hard = book[ids[-1]]
            loss = loss + F.mse_loss(rest, hard.detach()) + F.mse_loss(hard, rest.detach())
            total, rest = total + hard, rest - hard.detach()
        return x + (total - x).detach(), torch.stack(ids, -1), loss

    def from_codes(self, codes: Tensor) -> Any:
        parts = self._parts(codes)
        return parts.sum(0), torch.cat(list(parts), -1), codes

    def _parts(self, codes: Tensor) -> Tensor:
        return torch.stack([book[codes[..., level]] for level, book in enumerate(self.books)])


class Named(Tuple):
    """The same in a dictionary, z_q last."""

    def from_codes(self, codes: Tensor) -> Any:
        return {"levels": self._parts(codes), "z_q": self._parts(codes).sum(0)}


class LastLeftOut(Tuple):
    """`range(levels - 1)`."""

    def from_codes(self, codes: Tensor) -> Any:
        return self._parts(codes)[:-1].sum(0), None, codes


class FirstLeftOut(Tuple):
    """A plain tensor without the first level."""

    def from_codes(self, codes: Tensor) -> Any:
        return self._parts(codes)[1:].sum(0)


class Helper(Tuple):
    """A second method that gives a part on purpose and says so by its shape is no decoder."""

    def levels_of(self, codes: Tensor) -> Tensor:
        return self._parts(codes)

    def usage(self, codes: Tensor) -> Tensor:
        return torch.bincount(codes.flatten(), minlength=12).float()


@pytest.mark.parametrize(("cls", "path"), [(Tuple, (0,)), (Named, ("z_q",)), (Helper, (0,))])
def test_z_q_is_found_among_what_a_decoder_returns(cls: type[Tuple], path: tuple[str | int, ...]) -> None:
    (decoder,) = opened(cls).decoders
    assert (decoder.method, decoder.path) == ("from_codes", path)
    results = check_quantizer(cls, only=["lookup.decode"]).subjects[0].results
    assert [result.status for result in results] == ["passed"]


@pytest.mark.parametrize("cls", [LastLeftOut, FirstLeftOut])
def test_a_decoder_that_leaves_a_level_out_fails(cls: type[Tuple]) -> None:
    (failed,) = check_quantizer(cls, only=["lookup.decode"]).subjects[0].results
    assert (failed.status, failed.label, failed.case) == ("failed", "decode", "from_codes")
