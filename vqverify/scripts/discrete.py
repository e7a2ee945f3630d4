"""Codes that are computed: grids and signs; and codes that are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vqverify.scripts.registry import script
from vqverify.scripts.scene import Scene, Unscripted


@script("fsq.bijection", stated=False)
def bijection(s: Scene) -> Iterator[str]:
    """How many values and codes a grid has."""
    levels = tuple(s.trait("fsq_levels"))
    size = math.prod(levels)
    if len(levels) != s.dim:
        raise Unscripted("the grid stands behind a projection, or there are several")
    if s.label in {"level lost", "level too many"}:
        count = 8000
        yield f"z = torch.linspace(-8, 8, {count})[:, None].repeat(1, {s.dim})"
        yield from s.run(train=s.train, n=count)
        yield f"wrong = [len(column.unique()) for column in {s.z_q(train=s.train)}.detach().mul(1e4).round().T]"
        yield f'print("the coordinates take", wrong, "values and must take", {list(levels)})'
        yield f"assert wrong == {list(levels)}"
        return
    if s.label not in {"collision", "unreached", "dtype", "range"} or size > 1e5:
        raise Unscripted(f"no script is written for the label {s.label} of this row")
    ends = ", ".join(f"torch.linspace(-3, 3, {4 * level + 1})" for level in levels)
    count = math.prod(4 * level + 1 for level in levels)
    if count > 2e6:
        raise Unscripted("the grid is too large to be swept in a script")
    yield f"z = torch.cartesian_prod({ends}).reshape({count}, {s.dim})  # a fine sweep of every level"
    yield from s.run(train=s.train, n=count)
    yield f"k, z_q = {s.codes(train=s.train)}.reshape(-1), {s.z_q(train=s.train)}.detach()"
    if s.label == "dtype":
        yield f'print("codes are", k.dtype, "and must hold", {size - 1})'
        yield f"assert torch.iinfo(k.dtype).max >= {size - 1}"
        return
    if s.label == "range":
        yield f'print("codes lie in", [k.min().item(), k.max().item()], "and must lie in", {[0, size - 1]})'
        yield f"assert 0 <= k.min() and k.max() < {size}"
        return
    yield f"codes = k.unique()[(k.unique() >= 0) & (k.unique() < {size})]"
    yield "values = len(z_q.mul(1e4).round().unique(dim=0))"
    yield f'print("there are", len(codes), "codes for", values, "values of z_q, and must be", {size})'
    yield f"assert len(codes) == {size}"


@script("lfq.sign", stated=False)
def sign(s: Scene) -> Iterator[str]:
    """Signs and codes of every pattern of signs."""
    if s.part == "entropy" or s.dim > 12:
        raise Unscripted("no script is written for entropies, nor for more than 12 signs")
    count = 2**s.dim
    if s.label in {"magnitude", "sign"}:
        yield "z = torch.cat([z, torch.zeros_like(z[:1]), torch.ones_like(z[:1])])"
        yield from s.run(train=s.train, n=s.n + 2)
        yield f"z_q = {s.z_q(train=s.train)}.detach()"
        yield 'print("z_q", z_q, "must have one size everywhere, and the signs of", z)'
        yield "assert torch.allclose(z_q.abs(), z_q.abs().max()) and (z_q * z >= 0).all()"
        return
    yield f"signs = (torch.arange({count})[:, None] >> torch.arange({s.dim})) & 1  # every pattern"
    yield "z = 1.5 * signs.float() - 0.75"
    yield from s.run(train=s.train, n=count)
    yield f"k = {s.codes(train=s.train)}.reshape(len(z), -1)[:, 0]"
    if s.label == "collision":
        yield f'print("the sign patterns have", len(k.unique()), "codes and must have", {count})'
        yield f"assert len(k.unique()) == {count}"
        return
    yield f"wrong = (k[2 ** torch.arange({s.dim})] - k[0]).abs().sort().values"
    yield f"right = 2 ** torch.arange({s.dim})"
    yield 'print("one sign moves the code by", wrong, "and must by", right, "codes lie in", [k.min().item(), k.max().item()])'
    yield f"assert torch.equal(wrong.long(), right) and 0 <= k.min() and k.max() < {count}"


@script("stochastic.hard")
def hard(s: Scene) -> Iterator[str]:
    """How far z_q is from the nearest code."""
    s.plain()
    yield f"E = {s.book()}.detach().clone()"
    yield from s.run(train=s.train)
    yield f"apart = ({s.z_q(train=s.train)}.detach()[:, None] - E).norm(dim=-1).min(1).values"
    yield 'print("z_q is", apart, "away from the nearest code and must be", 0.0)'
    yield "assert apart.max() <= 1e-4 * (E.norm() + z.norm())"
