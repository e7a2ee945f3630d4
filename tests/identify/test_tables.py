"""Codes without a stored codebook: tables that add up, and digits of mixed radix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vqverify.identify.tables import digits
from vqverify.quantizer import Spec
from vqverify.subject import open_subject
from vqverify.subject.claims import honesty


def _table(levels: list[int], dim: int) -> torch.Tensor:
    basis = torch.randn(len(levels), dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    index, parts = torch.arange(math.prod(levels)), []
    for level in levels:
        parts.append(index % level)
        index //= level
    return torch.stack(parts, 1).double() @ basis


@pytest.mark.parametrize("levels", [[8, 5, 5], [5, 3], [2, 2, 2, 2], [2, 4, 2], [4, 4]])
@pytest.mark.parametrize("dim", [2, 7])
def test_digits_of_a_mixed_radix(levels: list[int], dim: int) -> None:
    table = _table(levels, dim)
    assert digits(table) == levels
    table[torch.arange(0, len(table), 7)] = math.nan
    assert digits(table) in (levels, None if len(table) < 20 else levels)


def test_arbitrary_rows_have_no_digits() -> None:
    assert digits(torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)) is None


LAYERS = [
    ("FSQ", {"levels": [8, 5, 5], "dim": 16}, {"fsq_levels": [8, 5, 5], "codebook_size": 200, "num_quantizers": 1}),
    (
        "ResidualFSQ",
        {"levels": [5, 5, 5], "dim": 8, "num_quantizers": 2},
        {"structure": "residual", "num_quantizers": 2, "fsq_levels": [5, 5, 5], "codebook_size": 125},
    ),
    (
        "ResidualLFQ",
        {"dim": 4, "codebook_size": 16, "num_quantizers": 2},
        {"structure": "residual", "num_quantizers": 2, "codebook_size": 16, "fsq_levels": [2, 2, 2, 2]},
    ),
]


@pytest.mark.parametrize(("name", "kwargs", "want"), LAYERS, ids=[row[0] for row in LAYERS])
def test_layers_without_a_stored_codebook(name: str, kwargs: dict[str, Any], want: dict[str, Any]) -> None:
    for seed in range(2):
        layer = open_subject(Spec(f"vector_quantize_pytorch:{name}", kwargs, seed=seed))
        assert {trait: layer.found[trait].value for trait in want} == want
        assert [case for case in honesty(layer.claims, layer.found) if case[1] == "failed"] == []
