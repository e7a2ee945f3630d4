"""What the inputs are worth: detection on the mutants, speed and size of witnesses, against two customary strategies.

`python -m benchmarks.strategies` prints the table of STRATEGIES.md. A mutant is found by a strategy if one of the rows
that name its cause fails on one of its examples; corners and mass, which need no strategy, are left out. Rows with
fixed inputs (mode table, statistical or process) see no strategy, and the mutants that only they name are left out too.
"""

from __future__ import annotations

import argparse
import fnmatch
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vqverify import engine, examples, strategies
from vqverify.case import Case
from vqverify.invariant import Invariant, Undetermined, applicability, registry
from vqverify.mutant import Mutant, mutants
from vqverify.quantizer import Quantizer, Spec
from vqverify.shrink import shrink
from vqverify.strategies import Frame
from vqverify.subject import open_subject

FEW, MANY = 25, 200
HISTORY = {"fresh": (0, 0), "warmed": (1, 4), "both": (0, 3)}


def ours(frame: Frame, state: str) -> st.SearchStrategy[Case]:
    """Structure drawn, bulk from bytes on a dyadic grid, latents in relations to codes."""
    return strategies.searched(frame, state)


def floats(frame: Frame, state: str) -> st.SearchStrategy[Case]:
    """Arrays of floats in ±1000, every entry drawn: what Hypothesis's own page on NumPy suggests."""
    low, high = HISTORY[state]

    def table(rows: int, dim: int) -> st.SearchStrategy[np.ndarray]:
        elements = st.floats(-1000, 1000, width=32)
        return arrays.arrays(np.float32, (rows, dim), elements=elements, fill=st.nothing())

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        n = draw(st.integers(frame.min_n, max(16, frame.min_n + 4)))
        z, g = draw(table(n, frame.dim)), draw(table(n, frame.dim))
        books = tuple(draw(table(*own.shape)) for own in frame.own) if _free(frame) else ()
        count = draw(st.integers(low, high))
        return _case(frame, z, g, books, [draw(table(n, frame.dim)) for _ in range(count)], draw(st.integers(0, 2**16)))

    return case()


def gaussians(frame: Frame, state: str) -> st.SearchStrategy[Case]:
    """One integer drawn, and standard normal numbers from it: what most test suites of layers do."""
    low, high = HISTORY[state]

    def case(seed: int) -> Case:
        rng = np.random.Generator(np.random.Philox(seed))
        n = int(rng.integers(frame.min_n, max(16, frame.min_n + 4) + 1))
        z, g, *history = rng.standard_normal((2 + int(rng.integers(low, high + 1)), n, frame.dim))
        books = tuple(rng.standard_normal(tuple(own.shape)) for own in frame.own) if _free(frame) else ()
        return _case(frame, z, g, books, history, seed % 2**16)

    return st.integers(0, 2**32 - 1).map(case)


def _free(frame: Frame) -> bool:
    return frame.settable and not frame.sphere


def _case(
    frame: Frame, z: np.ndarray, g: np.ndarray, books: tuple[np.ndarray, ...], history: list[np.ndarray], seed: int
) -> Case:
    def tensor(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows)).to(frame.dtype)

    return Case(tensor(z), tensor(g), seed, tuple(map(tensor, books)) or None, tuple(map(tensor, history)))


Strategy = Callable[[Frame, str], st.SearchStrategy[Case]]
STRATEGIES: dict[str, Strategy] = {"ours": ours, "floats() arrays": floats, "seeded Gaussians": gaussians}


@dataclass
class Tally:
    """What one strategy came to.

    Attributes:
        found: number of the first failing example, a mutant and seed.
        entries, nonzero: of the shrunk witnesses.
        examples, seconds: examples that were drawn and checked until a failure or the end, and their processor time.
        drawing: processor seconds a drawn example.
    """

    found: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    entries: list[int] = field(default_factory=list[int])
    nonzero: list[int] = field(default_factory=list[int])
    examples: int = 0
    seconds: float = 0.0
    drawing: list[float] = field(default_factory=list[float])


def searched_rows(mutant: Mutant, subject: Quantizer) -> list[Invariant]:
    """The rows that name a mutant's cause, search for it and apply."""
    rows = [registry()[id_] for id_ in mutant.names]
    return [row for row in rows if row.mode == "search" and applicability(row, subject.traits).verdict == "applies"]


def failing(row: Invariant, subject: Quantizer, case: Case) -> str | None:
    """Label of the first clause of a row that fails on a case."""
    try:
        return next((clause.label for clause in engine.evaluate(row, subject, case) if not clause.holds), None)
    except Undetermined:
        return None


def trial(mutant: Mutant, subject: Quantizer, seed: int, tallies: dict[str, Tally]) -> bool:
    """Every strategy on one mutant; False where none of its rows searches."""
    rows = searched_rows(mutant, subject)
    if not rows:
        return False
    frame = strategies.frame(subject)
    parts = {row.id: tuple(row.parts(subject)) for row in rows}
    for name, strategy in STRATEGIES.items():
        tally = tallies[name]
        hit: tuple[Invariant, Case, str] | None = None
        for number, case in enumerate(_drawn(strategy, frame, rows[0].state, seed, tally), 1):
            start = time.process_time()
            hit = next(_hits(rows, parts, subject, case), None)
            tally.examples, tally.seconds = tally.examples + 1, tally.seconds + time.process_time() - start
            if hit is not None:
                tally.found[mutant.name, seed] = number
                break
        if hit is not None:
            row, case, label = hit
            small = shrink(
                case, lambda c, r=row, said=label: failing(r, subject, c) == said, min_n=subject.domain.min_n
            )
            tensors = (small.z, small.g, *small.history, *(small.codebook or ()))
            tally.entries.append(sum(t.numel() for t in tensors))
            tally.nonzero.append(small.size())
    return True


def _hits(
    rows: list[Invariant], parts: dict[str, tuple[str | None, ...]], subject: Quantizer, case: Case
) -> Iterator[tuple[Invariant, Case, str]]:
    for row in rows:
        for part in parts[row.id]:
            one = case.with_part(part)
            if label := failing(row, subject, one):
                yield row, one, label


def _drawn(strategy: Strategy, frame: Frame, state: str, seed: int, tally: Tally) -> Iterator[Case]:
    """Blocks as the engine draws them, each when it is needed."""
    for block in range(MANY // FEW):
        start = time.process_time()
        cases = examples.drawn(strategy(frame, state), 1000 * seed + block)
        tally.drawing.append((time.process_time() - start) / max(1, len(cases)))
        yield from cases


def rates() -> Iterator[tuple[float, str]]:
    """Examples a processor second of every row that searches, drawing included: reference layer, D = 4, K = 8, N to 16."""
    subject = open_subject(Spec("vqverify.reference:VectorQuantizer", {"dim": 4, "codebook_size": 8}))
    frame = strategies.frame(subject)
    for row in registry().values():
        if row.mode != "search" or applicability(row, subject.traits).verdict != "applies":
            continue
        subject.restore()
        parts, start, count = tuple(row.parts(subject)), time.process_time(), 0
        for case in examples.drawn(strategies.searched(frame, row.state), 0, MANY) if parts else ():
            failing(row, subject, case.with_part(parts[count % len(parts)]))
            count += 1
        if count:
            yield count / (time.process_time() - start), row.id


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="streams of examples a mutant (default: %(default)s)")
    parser.add_argument("--only", default="*", help="shell pattern of mutants' names (default: all)")
    parser.add_argument("--rates", action="store_true", help="examples a second of each row that searches instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.rates:
        for rate, name in sorted(rates(), reverse=True):
            print(f"{rate:6.0f} {name}")
        return
    tallies = {name: Tally() for name in STRATEGIES}
    tried: list[str] = []
    for mutant in mutants().values():
        if fnmatch.fnmatch(mutant.name, given.only):
            subject = open_subject(Spec(mutant.target, dict(mutant.kwargs), role=mutant.role))
            done = [trial(mutant, subject, seed, tallies) for seed in range(given.seeds)]
            tried += [mutant.name] * all(done)
    print(f"{len(tried)} mutants with a row that searches, {given.seeds} stream(s) each.\n")
    print(f"| strategy | found in {FEW} | found in {MANY} | draw, µs | examples/s | entries of a witness | non-zero |")
    print("|---|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        counts = [sum(number <= most for number in tally.found.values()) for most in (FEW, MANY)]
        drawing = float(np.mean(tally.drawing))
        each = drawing + tally.seconds / max(1, tally.examples)
        sizes = [
            f"{np.mean(values or [0]):.1f} ({max(values, default=0)})" for values in (tally.entries, tally.nonzero)
        ]
        print(f"| {name} | {counts[0]} | {counts[1]} | {drawing * 1e6:.0f} | {1 / each:.0f} | {' | '.join(sizes)} |")
    for name, tally in tallies.items():
        missed = sorted({mutant for mutant in tried if (mutant, 0) not in tally.found})
        print(f"\nMissed by {name}: {', '.join(missed) or 'none'}.")


if __name__ == "__main__":
    main()
