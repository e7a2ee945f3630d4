"""Trainings judged, as Markdown: `python -m benchmarks.trainings [--save FILE] [--against FILE] [--mutants] [--false-alarms]`.

Without a flag: every watched training, its numbers and its time. `--save` keeps the curves; `--against` judges them by
curves that another commit saved: exit 1 if a number is worse or moved.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import _mutated, _watch
from vqverify.mutant import Mutant
from vqverify.mutants.base import EmaLayer, RotationLayer
from vqverify.training import TASKS, Curve, Judgement, Recipe, judge, train
from vqverify.training.judge import LEVEL
from vqverify.training.run import Builder

SEEDS = _watch.SEEDS
COLUMNS = ((Recipe("texture", "straight-through"), 160), (Recipe("spiral", "straight-through"), 240))
"""What mutants are trained in, with their steps: an encoder shows wrong gradients, a bare codebook wrong codebooks."""
SUBTLE, FIRST, IDENTICAL = 0.1, 2, "identical"


def train_with(layer: _mutated.Layer, seeds: Iterable[int], task: int, build: Builder | None = None) -> list[Curve]:
    """Train a layer in a column."""
    recipe, steps = COLUMNS[task]
    return [train(recipe, seed, steps=steps, layer=build or layer.builder(), size=layer.size) for seed in seeds]


def sized(kind: type, given: dict, task: int) -> _mutated.Layer:
    """A class with the sizes of a column's task."""
    one = TASKS[COLUMNS[task][0].task]
    return _mutated.layer(kind, given, one.dim, one.codebook_size)


class Comparison:
    """Mutants against their right counterparts, each of which is trained once."""

    def __init__(self) -> None:
        self.right: dict[tuple[str, int, int], Curve] = {}

    def judged(self, mutant: Mutant, task: int) -> tuple[Judgement, float] | str:
        """The judgement and the relative change of the reconstruction loss; or why there is none.

        A mutant whose first `FIRST` curves are its counterpart's bit for bit is not trained further: it draws and
        computes the same.
        """
        right = _mutated.counterpart(mutant)
        if right is None:
            return "no counterpart"
        wrong = sized(_mutated.kinds()[mutant.name], dict(mutant.kwargs), task)
        control = sized(right, dict(mutant.kwargs), task)
        before: list[Curve] = []
        after: list[Curve] = []
        for seed in range(SEEDS):
            key = (repr(control), task, seed)
            try:
                if key not in self.right:
                    self.right[key] = train_with(control, [seed], task)[0]
            except Exception as error:  # noqa: BLE001 - a stranger's layer
                return f"not trainable ({type(error).__name__})"
            try:
                after += train_with(wrong, [seed], task)
            except Exception as error:  # noqa: BLE001 - what a wrong layer does is its own affair
                return f"raises {type(error).__name__}"
            before.append(self.right[key])
            if seed + 1 == FIRST and before == after:
                return IDENTICAL
        a, b = (np.mean([curve.final("reconstruction") for curve in side]) for side in (before, after))
        return judge(before, after), float(b / a - 1)


def mutant_table(patterns: list[str]) -> None:
    """Which mutants the trainings see."""
    names = [recipe.task for recipe, _ in COLUMNS]
    print(f"\n## Mutants and trainings: {SEEDS} seeds, level {LEVEL:g} a training\n")
    print(
        "Seen: verdict, p-value, the first watched numbers that changed; identical: bit for bit the right layer's curve,"
    )
    print(f"by {FIRST} seeds. Δ is the change of the final reconstruction")
    print(f"loss; a mutant is subtle where |Δ| < {SUBTLE:.0%} in {names[0]}.\n")
    print(f"| mutant | mistake | {' | '.join(f'{name} | Δ' for name in names)} | seen by |")
    print("|---|---|" + "---|---|" * len(names) + "---|", flush=True)
    comparison = Comparison()
    tally: dict[str, list[str]] = {}
    for mutant in _mutated.layers():
        if not any(fnmatch.fnmatch(mutant.name, pattern) for pattern in patterns):
            continue
        start = time.process_time()
        found = [comparison.judged(mutant, task) for task in range(len(COLUMNS))]
        cells, seen = [], False
        for one in found:
            if isinstance(one, str):
                cells += [one, ""]
                seen = seen or one.startswith("raises")
                continue
            judged, change = one
            seen = seen or judged.verdict != "unchanged"
            cells += [said(judged), f"{change:+.1%}"]
        comparable = [one for one in found if not isinstance(one, str) or one == IDENTICAL]
        who = "trainings" if seen else "properties only" if comparable else "not compared"
        tally.setdefault(who, []).append(mutant.name)
        first = found[0]
        if seen and not isinstance(first, str) and abs(first[1]) < SUBTLE:
            tally.setdefault("subtle, and seen by trainings", []).append(mutant.name)
        if seen and all(isinstance(one, tuple) and one[0].verdict in {"better", "unchanged"} for one in found):
            tally.setdefault("of these, as better only (no gate stops them)", []).append(mutant.name)
        mistake = mutant.mistake.replace("|", "\\|")
        print(f"| {mutant.name} | {mistake} | {' | '.join(cells)} | {who} |", flush=True)
        print(f"{mutant.name}: {time.process_time() - start:.1f} s", file=sys.stderr)
    print()
    for who, members in tally.items():
        print(f"- {who}: {len(members)} ({', '.join(members)})")


def said(judged: Judgement) -> str:
    """A judgement in a cell."""
    if judged.verdict == "unchanged":
        return f"- (p {judged.p_value:.2g})"
    watched = list(dict.fromkeys(row.watched.replace("_", " ") for row in judged.changed))
    more = f" +{len(watched) - 3}" if len(watched) > 3 else ""
    return f"{judged.verdict} (p {judged.p_value:.2g}): {', '.join(watched[:3])}{more}"


def nudged(layer: _mutated.Layer) -> Builder:
    """The layer with its first codes off by a millionth."""

    def build(z):
        return layer.builder()(z * (1 + 1e-6))

    return build


def false_alarms(seeds: int, draws: int) -> None:
    """How often the judge calls a right layer changed, over resampled groups of seeds."""
    rng = np.random.default_rng(0)
    print(f"\n## False alarms: {draws} resampled groups of {SEEDS} of {seeds} seeds, level {LEVEL:g}\n")
    print("| null | training | alarms | rate |\n|---|---|---|---|", flush=True)
    for task, (recipe, _) in enumerate(COLUMNS):
        layer = sized(RotationLayer if task == 0 else EmaLayer, {}, task)
        runs = train_with(layer, range(seeds), task)
        touched = train_with(layer, range(seeds), task, nudged(layer))
        plain = train_with(sized(EmaLayer, {}, task), range(seeds), task) if task == 0 else runs
        rewritten = [rewrite(seed, task) for seed in range(seeds)]
        nulls = {
            "the same layer, other seeds": None,
            "first codes off by a millionth, same seeds": (runs, touched),
            "the same layer written otherwise, same seeds": (plain, rewritten),
        }
        for name, pair in nulls.items():
            alarms = 0
            for _ in range(draws):
                order = rng.permutation(seeds)
                if pair is None:
                    first, second = ([runs[i] for i in part] for part in (order[:SEEDS], order[SEEDS : 2 * SEEDS]))
                else:
                    first, second = ([side[i] for i in order[:SEEDS]] for side in pair)
                alarms += judge(renumbered(first), renumbered(second)).verdict != "unchanged"
            print(f"| {name} | {recipe.task} | {alarms} | {alarms / draws:.2%} |", flush=True)


def rewrite(seed: int, task: int) -> Curve:
    """EmaLayer as the reference composes it: an exact lookup, sums without a one-hot product, another rounding."""
    recipe, steps = COLUMNS[task]
    layer = sized(EmaLayer, {}, task)

    def build(z):
        codes = layer.builder()(z).table
        ours = recipe.with_changes("", initialisation="normal").layer()
        ours.set_codebook(codes)
        return ours

    return train(recipe, seed, steps=steps, layer=build, size=layer.size)


def renumbered(curves: list[Curve]) -> list[Curve]:
    """The curves as those of seeds 0, 1, ..."""
    return [replace(curve, seed=i) for i, curve in enumerate(curves)]


def watched_table(found: list[Curve], seconds: float) -> None:
    """Every watched training: means over the seeds at the end."""
    print(f"\n## Watched trainings, {SEEDS} seeds each: {seconds:.0f} s of CPU time in all\n")
    columns = ("reconstruction", "relative_error", "usage", "perplexity", "dead", "gradient_gap", "latent_norm")
    print(f"| training | {' | '.join(name.replace('_', ' ') for name in columns)} | steps a CPU second |")
    print("|---|" + "---|" * (len(columns) + 1))
    for name in dict.fromkeys(curve.name for curve in found):
        mine = [curve for curve in found if curve.name == name]
        cells = [f"{np.mean([curve.final(one) for curve in mine]):.3g}" for one in columns]
        print(f"| {name} | {' | '.join(cells)} | {np.median([c.steps_per_second for c in mine]):.0f} |")


def verdict_table(judged: Judgement) -> None:
    """What changed."""
    print(f"\n## {judged.verdict}: p {judged.p_value:.2g}, {judged.seeds} seeds, level {judged.level:g} for all rows\n")
    if judged.changed:
        print("| training | watched | at | before | after | p | change |\n|---|---|---|---|---|---|---|")
    for row in judged.changed:
        numbers = f"{row.before:.4g} | {row.after:.4g} | {row.p_value:.2g}"
        print(f"| {row.training} | {row.watched} | {row.summary} | {numbers} | {row.change} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the curves")
    parser.add_argument("--against", type=Path, metavar="FILE", help="judge by curves that were kept")
    parser.add_argument(
        "--mutants", nargs="*", metavar="GLOB", help="the table mutant x training; all of them if none is named"
    )
    parser.add_argument("--false-alarms", action="store_true", help="the judge on right layers")
    parser.add_argument("--seeds", type=int, default=60, help="of --false-alarms")
    parser.add_argument("--draws", type=int, default=1000, help="of --false-alarms")
    args = parser.parse_args()
    if args.mutants is not None or args.false_alarms:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mutants warn as they fail
            if args.mutants is not None:
                mutant_table(args.mutants or ["*"])
            if args.false_alarms:
                false_alarms(args.seeds, args.draws)
        return 0
    before = None
    if args.against:
        try:
            before = _watch.load(args.against)
        except (OSError, ValueError) as error:
            parser.error(f"--against: {error}")
    start = time.process_time()
    found = _watch.curves()
    watched_table(found, time.process_time() - start)
    if args.save:
        _watch.save(found, args.save)
    if before is None:
        return 0
    try:
        judged = judge(before, found)
    except ValueError as error:
        parser.error(f"--against: {error}")
    verdict_table(judged)
    return 1 if judged.verdict in {"worse", "moved"} else 0


if __name__ == "__main__":
    sys.exit(main())
