"""Inputs: blocks are functions of their seed, structures are reached, longer profiles contain shorter ones."""

import torch

from vqverify import examples, strategies
from vqverify.invariant import registry
from vqverify.quantizer import Spec
from vqverify.subject import open_subject


def layer():
    return open_subject(Spec("vqverify.mutants.base:EmaLayer", {"dim": 3, "codebook_size": 5}))


def same(a, b):
    return torch.equal(a.z, b.z) and torch.equal(a.g, b.g) and a.seed == b.seed and len(a.history) == len(b.history)


def test_a_block_is_a_function_of_its_seed():
    strategy = strategies.searched(strategies.frame(layer()), "both")
    first, again, other = (examples.drawn(strategy, seed) for seed in (1, 1, 2))
    assert len(first) == examples.BLOCK
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not all(same(a, b) for a, b in zip(first, other, strict=True))


def test_structures_are_reached():
    frame = strategies.frame(layer())
    cases = [case for seed in range(8) for case in examples.drawn(strategies.searched(frame, "warmed"), seed)]
    assert all(case.history for case in cases)
    assert any(len(case.z) == 1 for case in cases)
    assert any(case.codebook is None for case in cases)
    assert any(case.codebook is not None and case.z.abs().max() > 20000 for case in cases)
    tables = [case.codebook[0] if case.codebook is not None else frame.own[0] for case in cases]
    assert any((case.z[:, None] == table[None]).all(-1).any() for case, table in zip(cases, tables, strict=True))
    assert any((case.z == 0).all(1).any() for case in cases)


def test_corners_reach_the_antiparallel_pair_and_the_exact_tie():
    frame = strategies.frame(layer())
    found = {case.origin: case for case in strategies.corners(frame, strategies.CORNERS, "fresh")}
    pair = found["corner antiparallel"]
    cosine = torch.nn.functional.cosine_similarity(pair.z, pair.codebook[0][:1].expand_as(pair.z))
    assert cosine.min() == -1
    tie = found["corner tie"]
    distance = torch.cdist(tie.z.double(), tie.codebook[0].double())
    assert (distance.sort(1).values[:, 0] == distance.sort(1).values[:, 1]).any()


def test_merge_contains_quick():
    subject, row = layer(), registry()["lookup.nearest"]
    quick, merge = (examples.Examples(row, subject, examples.PROFILES[name], (0, "x")) for name in ("quick", "merge"))
    assert len(merge.of_case(0, 1)) == len(quick.of_case(0, 1)) + 7 * examples.BLOCK
    assert all(same(a, b) for a, b in zip(quick.of_case(0, 1), merge.of_case(0, 1), strict=False))
