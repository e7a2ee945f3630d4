"""What codes do to z_q where no codebook is stored: one table a code column, and the digits that a code is made of."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from vqverify.identify.probes import Unknown, relative, unknown_
from vqverify.quantizer import Finding

if TYPE_CHECKING:
    from torch import Tensor

    from vqverify.identify.probes import Findings, Probe

MOST = 1024  # codes of all columns together, for a table to be fitted
SCALES = (0.5, 1.0, 3.0)  # latents near the centre and far out: every code is to be seen
EXACT = 1e-3
PLACED = 8  # rows of a table that are to be found in a codebook


def implicit(probe: Probe) -> Findings:
    """The columns whose tables add up to z_q, and the levels of a code that is a mixed-radix number.

    Raises:
        Unknown: if z_q is no sum of functions of the code columns.
    """
    codes, z_q = _seen(probe)
    sizes = [int(column.max()) + 1 for column in codes.t()]
    if sum(sizes) > MOST:
        raise Unknown(f"no stored codebook, and {sum(sizes)} codes are too many to tabulate")
    tables = _tables(codes, z_q, sizes)
    found: Findings = {}
    if len(sizes) > 1:
        text = f"{len(sizes)} code columns, z_q is a sum of a function of each"
        found["structure"] = Finding("residual", evidence=text)
        found["num_quantizers"] = Finding(len(sizes), evidence=text)
        found["heads"] = Finding(1, evidence=text)
    elif digits(tables[0]):
        text = "one code a latent; its digits move z_q along directions that are no coordinates of z"
        found["structure"] = unknown_(text)
        found["num_quantizers"] = Finding(1, evidence=text)
        found["heads"] = Finding(1, evidence=text)
    if len(set(sizes)) == 1 and (levels := digits(tables[0])):
        text = f"z_q moves by a constant vector a digit as the code counts up in the mixed radix {levels}"
        found["fsq_levels"] = Finding(levels, evidence=text)
        found["codebook_size"] = Finding(math.prod(levels), evidence=text)
        found["learning"] = Finding(["none"], evidence="no stored codebook: the values are fixed")
    if not found:
        raise Unknown("no stored codebook, and z_q is not a function of each coordinate alone")
    return found


def additive(probe: Probe) -> bool:
    """Whether z_q is a sum of functions of the code columns."""
    try:
        codes, z_q = _seen(probe)
        sizes = [int(column.max()) + 1 for column in codes.t()]
        if sum(sizes) > MOST:
            return False
        _tables(codes, z_q, sizes)
    except Unknown:
        return False
    return True


def renumbered(probe: Probe) -> bool:
    """Whether each column's table is a stored codebook up to a shift, and some with its rows in another order."""
    books = [book.double() for book in probe.layer.codebooks()]
    if probe.layer.domain.dim < 2 or any(book.shape[1] != probe.layer.domain.dim for book in books):
        return False
    codes, z_q = _seen(probe)
    tables = _tables(codes, z_q, [int(column.max()) + 1 for column in codes.t()])
    if len(tables) != len(books):
        return False
    own = [_in_order(table, book) for table, book in zip(tables, books, strict=True)]
    return not all(own) and all(
        mine or any(_rows_of(table, book) for book in books) for mine, table in zip(own, tables, strict=True)
    )


def _in_order(table: Tensor, book: Tensor) -> bool:
    if len(table) > len(book):
        return False
    off = table - book[: len(table)]
    off = off[~off.isnan().any(1)]
    return relative(off - off.mean(0), book - book.mean(0)) < EXACT


def _rows_of(table: Tensor, book: Tensor) -> bool:
    """Whether a shift takes rows of a table to rows of a codebook; any row may be that of the first one."""
    rows = table[~table.isnan().any(1)][:PLACED]
    if len(rows) < min(PLACED, len(book)):
        return False
    steps = rows[1:] - rows[0]
    places = book[:, None] + steps
    gaps = torch.cdist(places.flatten(0, 1), book).amin(1).reshape(len(book), -1)
    return bool((gaps.amax(1) <= EXACT * (book - book.mean(0)).norm(dim=1).mean()).any())


def _seen(probe: Probe) -> tuple[Tensor, Tensor]:
    """Codes (n, L) and z_q (n, D) of many latents, in eval mode."""
    parts = [probe.run(scale * probe.latents(4 * MOST, seed=20 + i), train=False) for i, scale in enumerate(SCALES)]
    codes = [part.codes for part in parts if part.codes is not None]
    if len(codes) < len(parts):
        raise Unknown("no stored codebook, and no codes")
    joined = torch.cat(codes)
    if bool((joined < 0).any()):
        raise Unknown("no stored codebook, and some codes are dropped")
    return joined, torch.cat([part.z_q.rows.detach() for part in parts]).double()


def _tables(codes: Tensor, z_q: Tensor, sizes: list[int]) -> list[Tensor]:
    """Values (K, D) of each column's codes, whose sum is z_q; NaN for codes that were not seen.

    Raises:
        Unknown: if there are none.
    """
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    rows, inverse = torch.unique(codes, dim=0, return_inverse=True)
    first = torch.empty(len(rows), dtype=torch.long).scatter_(0, inverse, torch.arange(len(codes)))
    if relative(z_q - z_q[first][inverse], z_q) > EXACT:
        raise Unknown("no stored codebook, and z_q is no function of the codes")
    if len(sizes) == 1:
        table = torch.full((sizes[0], z_q.shape[1]), math.nan, dtype=torch.float64)
        table[rows[:, 0]] = z_q[first]
        return [table]
    keep = torch.randperm(len(rows), generator=torch.Generator().manual_seed(21))[: 6 * sum(sizes)]
    design = torch.zeros(len(keep), int(offsets[-1]), dtype=torch.float64)
    design.scatter_(1, rows[keep] + offsets[:-1], 1.0)
    values = torch.linalg.lstsq(design, z_q[first[keep]], driver="gelsd").solution
    if relative(design @ values - z_q[first[keep]], z_q[first[keep]]) > EXACT or len(keep) < 2 * sum(sizes):
        raise Unknown(f"no stored codebook, and z_q is no sum of functions of its {len(sizes)} code columns")
    values[design.sum(0) == 0] = math.nan
    return [values[a:b] for a, b in pairwise(offsets.tolist())]


def digits(table: Tensor) -> list[int] | None:
    """The radix of each digit, fastest first, if the rows (K, D) are affine in the digits of their index.

    NaN rows are ignored. None if they are not: a table of K arbitrary rows has one digit, of K values.
    """
    levels: list[int] = []
    stride, size = 1, len(table)
    while stride < size:
        steps = table[stride:] - table[:-stride]
        place = (torch.arange(len(steps)) // stride) % (size // stride)
        known = ~steps.isnan().any(1)
        radix = next((r for r in _divisors(size // stride) if _even(steps, place, known, r)), None)
        if radix is None:
            return None
        levels.append(radix)
        stride *= radix
    return levels if len(levels) > 1 else None


def _divisors(number: int) -> list[int]:
    """Largest first, without 1."""
    return [r for r in range(number, 1, -1) if number % r == 0]


def _even(steps: Tensor, place: Tensor, known: Tensor, radix: int) -> bool:
    """Whether every step that carries nothing is the same one."""
    inside = steps[known & ((place + 1) % radix != 0)]
    return len(inside) > 1 and relative(inside - inside.mean(0), inside) < EXACT
