"""Bounds of the loss rows: what a map does to rounding is seen in every direction, or the right layer is blamed."""

import numpy as np
import pytest
import torch

from vqverify.invariants import pulls


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 9, 64])
def test_no_direction_of_a_map_of_rank_one_is_missed(dim: int) -> None:
    """|J|_F of J = t tᵀ is 1 for every unit t: exactly where there is a pull a dimension, else within what |q| allows."""
    t = torch.nn.functional.normalize(torch.randn(4096, dim, generator=torch.Generator().manual_seed(1)), dim=-1)
    drawn = pulls.cotangents((4096, dim))
    size = torch.stack([(t * cotangent).sum(-1).square() for cotangent in drawn]).sum(0).sqrt().numpy()
    if dim <= pulls.BASIS:
        np.testing.assert_allclose(size, 1, rtol=1e-5)
    else:
        assert size.min() > 0.02
        assert size.max() < 4
