"""Bounds of the loss rows: what a map does to rounding is seen in every direction, or the right layer is blamed."""

import numpy as np
import pytest
import torch

from vqverify import engine
from vqverify.examples import Profile
from vqverify.invariants import pulls
from vqverify.quantizer import Spec
from vqverify.run import opening


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


def test_a_right_cosine_layer_in_two_dimensions_is_not_blamed() -> None:
    """A seed of the campaign under which two random cotangents lay next to the normal, in a row where z ≈ q."""
    spec = Spec(
        "vqverify.reference:VectorQuantizer", {"dim": 2, "codebook_size": 8, "metric": "cosine"}, seed=887168401
    )
    subject = opening.opened(spec).subject
    assert subject is not None
    job = engine.Job(spec, ("loss.gradients",), Profile("quick", 8), 887168402)
    (result,) = engine.run(job, lambda _: subject).results
    assert result.status == "passed", result.message
