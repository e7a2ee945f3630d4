"""vector-quantize-pytorch and the reference layers: every configuration is settled as its code reads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vqverify.discovery import DiscoveryError, discover
from vqverify.subject.target import construct, load

if TYPE_CHECKING:
    from vqverify.subject.plan import Plan

SMALL = {"dim": 8, "codebook_size": 16}
VQ, VQP = "VectorQuantize", "vector_quantize_pytorch"
HEADS = {**SMALL, "codebook_dim": 4, "heads": 2}
STACK = {**SMALL, "num_quantizers": 3}

# class, kwargs, layouts, codes, number of losses, stored codebooks, accumulators, decoders that work or not
Row = tuple[str, dict[str, Any], str, str, int, int, int, int]
TABLE: list[Row] = [
    (VQ, SMALL, "BND ND", "BN", 1, 1, 1, 2),
    (VQ, {**SMALL, "rotation_trick": False}, "BND ND", "BN", 1, 1, 1, 2),
    (VQ, {**SMALL, "use_cosine_sim": True}, "BND ND", "BN", 1, 1, 1, 2),
    (VQ, {**SMALL, "codebook_dim": 4}, "BND ND", "BN", 1, 1, 1, 1),
    (VQ, HEADS, "BND ND", "BNL", 1, 2, 2, 2),
    (VQ, {**SMALL, "codebook_size": 1}, "BND", "BN", 1, 1, 1, 2),
    (VQ, {**HEADS, "separate_codebook_per_head": True}, "BND ND", "BNL", 1, 2, 2, 2),
    (VQ, {**SMALL, "channel_last": False}, "BDN ND", "BN", 1, 1, 1, 2),
    (VQ, {**SMALL, "accept_image_fmap": True}, "BDHW", "BHW", 1, 1, 1, 2),
    (VQ, {**SMALL, "accept_3d_fmap": True}, "BDTHW", "BTHW", 1, 1, 1, 2),
    (VQ, {**SMALL, "learnable_codebook": True, "ema_update": False}, "BND ND", "BN", 1, 1, 0, 2),
    (VQ, {**SMALL, "kmeans_init": True}, "BND ND", "BN", 1, 1, 1, 2),
    (VQ, {**SMALL, "affine_param": True}, "BND ND", "BN", 1, 0, 0, 0),
    (VQ, {**SMALL, "stochastic_sample_codes": True}, "BND ND", "BN", 1, 1, 1, 2),
    (VQ, {**SMALL, "commitment_weight": 0.0}, "BND ND", "BN", 0, 1, 1, 2),
    (VQ, {**SMALL, "orthogonal_reg_weight": 1.0}, "BND ND", "BN", 1, 1, 1, 2),
    (VQ, {**SMALL, "threshold_ema_dead_code": 2}, "BND ND", "BN", 1, 1, 1, 2),
    ("ResidualVQ", STACK, "BND ND", "BNL", 1, 3, 3, 1),
    ("ResidualVQ", {**STACK, "shared_codebook": True}, "BND ND", "BNL", 1, 3, 3, 1),
    ("ResidualVQ", {**STACK, "quantize_dropout": True}, "BND ND", "BNL", 1, 3, 3, 1),
    ("ResidualVQ", {**STACK, "codebook_dim": 4}, "BND ND", "BNL", 1, 3, 3, 1),
    ("ResidualVQ", {**STACK, "kmeans_init": True}, "BND ND", "BNL", 1, 3, 3, 1),
    ("GroupedResidualVQ", {**STACK, "groups": 2}, "BND ND", "LBNL", 1, 6, 6, 1),
    ("FSQ", {"levels": [8, 5, 5, 5]}, "BND BDHW BDTHW", "BN", 0, 0, 0, 1),
    ("FSQ", {"levels": [8, 5, 5], "num_codebooks": 2}, "BND BDHW BDTHW", "BNL", 0, 0, 0, 1),
    ("FSQ", {"levels": [8, 5, 5], "dim": 8}, "BND BDHW BDTHW", "BN", 0, 0, 0, 1),
    ("ResidualFSQ", {"dim": 8, "levels": [8, 5, 5, 3], "num_quantizers": 2}, "BND", "BNL", 0, 0, 0, 1),
    ("LFQ", SMALL, "BND BDHW BDTHW", "BN", 1, 0, 0, 1),
    ("ResidualLFQ", STACK, "BND", "BNL", 1, 0, 0, 1),
    ("SimVQ", SMALL, "BND BHWD ND BTHWD", "BN", 1, 1, 0, 1),
    ("ResidualSimVQ", STACK, "BND BHWD ND BTHWD", "BNL", 1, 3, 0, 1),
    ("LatentQuantize", {"levels": [5, 5, 8], "dim": 9}, "BDN BDHW ND BDTHW", "BN", 1, 0, 0, 1),
]


def opened(target: str, kwargs: dict[str, Any]) -> Plan:
    cls = load(target)
    return discover(construct(cls, kwargs, 0), cls, kwargs, dtype=torch.float32)


@pytest.mark.parametrize(
    "row", TABLE, ids=[f"{row[0]}-{'-'.join(key for key in row[1] if key not in STACK)}" for row in TABLE]
)
def test_vector_quantize_pytorch(row: Row) -> None:
    name, kwargs, layouts, codes, *counts = row
    plan = opened(f"{VQP}:{name}", kwargs)
    call = plan.calls[0]
    assert " ".join(call.layout for call in plan.calls) == layouts
    assert [output.form for output in call.codes] == [codes]
    own = len(kwargs.get("levels", ())) * kwargs.get("num_codebooks", 1)
    assert (plan.dim, call.z_q.path) == (kwargs.get("dim", own), (0,))
    assert [len(some) for some in (call.losses, plan.slots, plan.accumulators, plan.decoders)] == counts
    assert plan.sphere is bool(kwargs.get("use_cosine_sim", False))
    assert plan.warm == int(bool(kwargs.get("kmeans_init", kwargs.get("affine_param", False))))
    assert plan.min_n == 1


@pytest.mark.parametrize(("mean", "variance"), [(math.nan, 1.0), (100.0, 4.0), (1e20, 1.0), (0.0, 0.0)])
def test_memory_that_only_training_fills_changes_no_conclusion(mean: float, variance: float) -> None:
    cls, kwargs = load(f"{VQP}:{VQ}"), {**SMALL, "affine_param": True}
    module = construct(cls, kwargs, 0)
    module._codebook.codebook_mean.fill_(mean)  # torch.empty: eval passes before training compute with it
    module._codebook.codebook_variance.fill_(variance)
    plan = discover(module, cls, kwargs, dtype=torch.float32)
    assert ([call.layout for call in plan.calls], plan.warm) == (["BND", "ND"], 1)


def test_levels_of_a_stack_are_not_mixed() -> None:
    plan = opened(f"{VQP}:GroupedResidualVQ", {**STACK, "groups": 2})
    owners = [slot.name.rpartition(".")[0] for slot in plan.slots]
    assert owners == [f"rvqs.{group}.layers.{level}._codebook" for group in range(2) for level in range(3)]
    for owner, pair in zip(owners, plan.accumulators, strict=True):
        assert {slot.name.rpartition(".")[0] for slot in pair} == {owner}
    assert plan.decoders[0].levels == (2, 3)


def test_codes_without_z_q_need_an_adapter() -> None:
    kwargs = {"dim": 8, "num_codebooks": 2, "codebook_dim": 4, "codebook_size": 16}
    with pytest.raises(
        DiscoveryError, match=r"RandomProjectionQuantizer returned a tensor of shape .* int64 .* codes without a z_q"
    ):
        opened(f"{VQP}:RandomProjectionQuantizer", kwargs)


def test_large_sizes_are_no_trouble() -> None:
    plan = opened(f"{VQP}:{VQ}", {"dim": 256, "codebook_size": 1024})
    assert (len(plan.slots), len(plan.accumulators), plan.dim) == (1, 1, 256)


@pytest.mark.parametrize(
    ("name", "kwargs", "levels", "accumulators"),
    [
        ("VectorQuantizer", {"dim": 8, "codebook_size": 16}, 1, 1),
        ("VectorQuantizer", {"dim": 8, "codebook_size": 16, "metric": "cosine"}, 1, 1),
        ("VectorQuantizer", {"dim": 8, "codebook_size": 16, "learning": "gradient"}, 1, 0),
        ("VectorQuantizer", {"dim": 8, "codebook_size": 16, "channel_first": True}, 1, 1),
        ("ResidualVQ", {"dim": 8, "codebook_size": 16, "num_quantizers": 3}, 3, 3),
        ("FSQ", {"levels": [5, 3, 7]}, 0, 0),
        ("ProjectedCosineVQ", {"dim": 8, "codebook_size": 16, "codebook_dim": 4}, 1, 1),
        ("GumbelVQ", {"dim": 8, "codebook_size": 16}, 1, 0),
    ],
)
def test_reference(name: str, kwargs: dict[str, Any], levels: int, accumulators: int) -> None:
    plan = opened(f"vqverify.reference:{name}", kwargs)
    assert (len(plan.slots), len(plan.accumulators)) == (levels, accumulators)
    assert plan.calls[0].codes
