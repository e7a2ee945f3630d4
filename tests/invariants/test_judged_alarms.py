"""Seeds under which the campaign blamed a right layer; each was judged, and the row mended."""

from typing import Any

import pytest

from vqverify import engine
from vqverify.examples import Profile
from vqverify.quantizer import Spec
from vqverify.run import opening

ALARMS: list[tuple[str, dict[str, Any], int, str, int, int]] = [
    # a latent on its code in two dimensions: both random cotangents lay next to the normal
    (
        "vqverify.reference:VectorQuantizer",
        {"dim": 2, "codebook_size": 8, "metric": "cosine"},
        887168401,
        "loss.gradients",
        8,
        887168402,
    ),
    # one latent, and a z_q behind a projection whose norm was 1 by chance
    (
        "vqverify.mutants.lookup:ProjectedCosine",
        {"dim": 6, "codebook_size": 8},
        111200241,
        "lookup.cosine_sphere",
        1,
        111200241,
    ),
]


@pytest.mark.parametrize(("target", "kwargs", "layer", "row", "factor", "seed"), ALARMS)
def test_a_right_layer_is_not_blamed(
    target: str, kwargs: dict[str, Any], layer: int, row: str, factor: int, seed: int
) -> None:
    subject = opening.opened(Spec(target, kwargs, seed=layer)).subject
    assert subject is not None
    found = engine.run(
        engine.Job(Spec(target, kwargs, seed=layer), (row,), Profile("quick", factor), seed), lambda _: subject
    )
    assert [(result.status, result.message) for result in found.results] == [("passed", None)] * len(found.results)
    assert found.results
