"""A prover that can fail: wrong statements in place of the right ones, each of which must be refuted.

The mutator works on the trees of the stated formulas: it flips signs, drops terms and factors, inverts factors,
swaps the factors of matrix products, transposes, changes constants and exchanges symbols. What is equal to the
original after expansion is no mutant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, Step, execute

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Mutant:
    """One wrong statement.

    Attributes:
        derivation: id of the derivation.
        name: of the stated formula that was changed.
        change: what was done.
        formula: the changed formula.
        refuted: whether a step refuted it; None before it was tried.
        by: the step that refuted it, with the exception where the formula could not be evaluated.
    """

    derivation: str
    name: str
    change: str
    formula: Any
    refuted: bool | None = None
    by: str = ""


def _without(args: tuple[Any, ...], index: int) -> tuple[Any, ...]:
    return args[:index] + args[index + 1 :]


def _is(node: Any, kind: Any) -> bool:
    """Like isinstance, without narrowing: what SymPy's annotations say of matrix expressions is too little."""
    return isinstance(node, kind)


def _local(node: Any) -> Iterator[tuple[str, Any]]:
    """Changes at the root of a tree."""
    if _is(node, sp.Tuple):
        return
    if _is(node, (sp.Number, sp.NumberSymbol)):
        yield "constant", node + 1
        if node != 0 and node.is_finite:
            yield "sign", -node
        return
    if not _is(node, (sp.Identity, sp.ZeroMatrix)):
        yield "sign", -node
    if _is(node, (sp.Add, sp.MatAdd)):
        for index, term in enumerate(node.args):
            yield "drop term", node.func(*_without(node.args, index))
            yield "sign of a term", node.func(*_without(node.args, index), -term)
    elif _is(node, sp.MatMul):
        scalars, matrices = node.as_coeff_matrices()
        if len(matrices) < len(node.args):
            yield "drop factor", sp.MatMul(*matrices)
        for index in range(len(matrices) - 1):
            swapped = [*matrices[:index], matrices[index + 1], matrices[index], *matrices[index + 2 :]]
            yield "swap factors", scalars * sp.MatMul(*swapped)
        if scalars != 1:
            yield "invert factor", sp.MatMul(*matrices) / scalars
        for index, matrix in enumerate(matrices):
            if matrix.is_square:
                rest = _without(tuple(matrices), index)
                yield "transpose factor", scalars * sp.MatMul(*matrices[:index], matrix.T, *matrices[index + 1 :])
                yield "drop factor", scalars * sp.MatMul(*rest) if rest else scalars
    elif _is(node, sp.Mul):
        for index, factor in enumerate(node.args):
            yield "drop factor", node.func(*_without(node.args, index))
            if factor != -1:
                yield "invert factor", node.func(*_without(node.args, index), 1 / factor)
    elif _is(node, sp.Pow):
        yield "invert", 1 / node
        yield "drop power", node.base
    if _is(node, sp.MatrixExpr) and node.is_square:
        yield "transpose", node.T


def _anywhere(tree: Any) -> Iterator[tuple[str, Any]]:
    """Changes at any node; the dummy index and limits of a sum are left alone."""
    for change, changed in _attempt(_local, tree):
        yield change, changed
    leaf = _is(tree, (sp.Symbol, sp.MatrixSymbol, sp.Number, sp.Identity, sp.ZeroMatrix))
    rebuilt: Any = tree.func  # the class of a node, typed by its narrowest constructor otherwise
    children = () if leaf else tree.args
    for index, child in enumerate(children[:1] if _is(tree, sp.Sum) else children):
        for change, changed in _anywhere(child):
            try:
                yield change, rebuilt(*tree.args[:index], changed, *tree.args[index + 1 :])
            except (TypeError, ValueError, AttributeError):  # shapes that SymPy itself refuses are no statements
                continue


def _attempt(changes: Any, tree: Any) -> Iterator[tuple[str, Any]]:
    try:
        yield from changes(tree)
    except (TypeError, ValueError, AttributeError):
        return


def _exchanged(tree: Any) -> Iterator[tuple[str, Any]]:
    """Pairs of symbols of one kind exchanged."""
    symbols = sorted(tree.free_symbols, key=str)
    for first, second in combinations(symbols, 2):
        if getattr(first, "shape", None) == getattr(second, "shape", None):
            yield f"exchange {first}, {second}", tree.xreplace({first: second, second: first})


def _equal(left: Any, right: Any) -> bool:
    if left == right:
        return True
    if getattr(left, "shape", None) != getattr(right, "shape", None):
        return False
    scalars = _is(left, sp.Expr) and not _is(left, sp.MatrixExpr)
    return scalars and sp.expand(left - right) == 0


def mutants(derivation: Derivation) -> Iterator[Mutant]:
    """All first-order mutants of the stated formulas of a derivation, each once.

    Args:
        derivation: whose statement is to be made wrong.

    Yields:
        Untried mutants.
    """
    for name, formula in derivation.stated.items():
        seen = {formula}
        for source in (_anywhere, _exchanged):
            for change, changed in source(formula):
                if changed in seen or _equal(changed, formula):
                    continue
                seen.add(changed)
                yield Mutant(derivation.id, name, change, changed)


class _Recorder(dict[str, Any]):
    """Notes which formulas a step reads."""

    def __init__(self, stated: Stated) -> None:
        super().__init__(stated)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def readers(derivation: Derivation) -> Mapping[str, tuple[Step, ...]]:
    """The steps that read each stated formula, found by running them."""
    found: dict[str, list[Step]] = {name: [] for name in derivation.stated}
    for step in derivation.steps:
        recorder = _Recorder(derivation.stated)
        if step.check is not None and step.check(recorder):
            for name in recorder.read:
                found[name].append(step)
    return {name: tuple(steps) for name, steps in found.items()}


def try_mutant(derivation: Derivation, mutant: Mutant, steps: tuple[Step, ...]) -> Mutant:
    """Run the steps on the changed statement, stopping at the first that refutes it."""
    stated = {**derivation.stated, mutant.name: mutant.formula}
    for step in steps:
        proof = execute(derivation.id, (step,), stated)
        if not proof.holds:
            return replace(mutant, refuted=True, by=proof.failed[0])
    return replace(mutant, refuted=False)


def campaign(derivation: Derivation, every: int = 1) -> Iterator[Mutant]:
    """Try the mutants of a derivation.

    Args:
        derivation: whose statement is made wrong.
        every: try every n-th mutant only, a sample.

    Yields:
        Tried mutants; those with ``refuted`` False survived.
    """
    steps = readers(derivation)
    for index, mutant in enumerate(mutants(derivation)):
        if index % every == 0:
            yield try_mutant(derivation, mutant, steps[mutant.name])
