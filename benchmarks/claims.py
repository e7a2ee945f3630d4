"""What the papers claim, compared in miniature, as Markdown: `python -m benchmarks.claims [--task digits]`.

Both sides of a claim train from the same seeds. The interval is that of the ratio of their numbers (Hodges and Lehmann's
estimate and the exact interval of Wilcoxon's signed-rank test on the logarithms); all intervals together hold with
probability 95% (Bonferroni). A claim is supported where the interval lies on its side of 1, not supported where it lies
on the other side, undecided at this size otherwise. A claim that nothing changes is supported where the interval lies
within 2% of 1. Papers: 000 Fifty et al. 2024 (rotation trick), 001 Huh et al. 2023;
practice: what is said of EMA codebooks since van den Oord et al. 2017.
"""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from vqverify.mutants.base import EmaLayer
from vqverify.training import TASKS, Curve, MissingPackageError, Recipe, train

SEEDS, STEPS, CONFIDENCE, SAME = 12, 300, 0.95, 0.02
LESS, MORE, EQUAL = "less", "more", "the same"


class HalfLookup(EmaLayer):
    """Distances in float16, and nothing looked at again (001, A.1)."""

    def lookup(self, flat):
        return (flat.half()[:, None] - self.table.half()).square().sum(-1).argmin(1)


@dataclass(frozen=True)
class Side:
    """One side of a claim: a recipe, or another layer in it."""

    name: str
    recipe: Recipe
    layer: type | None = None

    def train(self, seed: int, steps: int) -> Curve:
        build: Callable | None = None
        arguments = self.recipe.arguments()
        if self.layer:

            def build(z):
                layer = self.layer(arguments["dim"], arguments["codebook_size"])
                rows = z[torch.randperm(len(z))[: arguments["codebook_size"]]]
                layer.table.copy_(rows)
                layer.total.copy_(rows)
                return layer

        return train(self.recipe, seed, steps=steps, layer=build)


@dataclass(frozen=True)
class Claim:
    """That ``new`` has less, more, or the same of a watched number than ``old``."""

    source: str
    new: Side
    old: Side
    watched: str
    direction: str


def claims(task: str) -> list[Claim]:
    """Every claim."""
    base = Recipe(task, "straight-through", "ema")

    def method(name: str, estimator: str = "straight-through", codebook: str = "ema", **changes) -> Side:
        recipe = replace(base, estimator=estimator, codebook=codebook)
        return Side(name, recipe.with_changes(name, **changes) if changes else recipe)

    plain, rotation = method("straight-through"), method("rotation", "rotation")
    hessian, exact = method("Hessian", "hessian"), method("exact", "exact")
    cosine = {
        name: Side(f"{name}, cosine", replace(base, estimator=name, metric="cosine"))
        for name in ("straight-through", "rotation")
    }
    gradient = method("gradient codebook", codebook="gradient")
    large = {"codebook_size": 4 * TASKS[task].codebook_size, "initialisation": "normal"}
    collapsing = method("K x 4, normal start", **large)
    replaced = method("K x 4, replaced after 20 steps", **large, replacement=20)
    betas = {
        beta: method(f"β = {beta}", codebook="gradient", commitment_weight=2.5 * (1 - beta), codebook_weight=2.5 * beta)
        for beta in (0.5, 0.9, 0.995)
    }
    half = Side("float16 lookup", base.with_changes("float16"), HalfLookup)
    single = Side("float32 lookup", base.with_changes("float32"), EmaLayer)
    found = [
        Claim("000 table 1", rotation, plain, "quantization_error", LESS),
        Claim("000 table 1, read as a share", rotation, plain, "relative_error", LESS),
        Claim("000 section 4.3", rotation, plain, "usage", MORE),
        Claim("000 section 4.3", rotation, plain, "perplexity", MORE),
        Claim("000 table 1", rotation, plain, "reconstruction", LESS),
        Claim("000 table 1", cosine["rotation"], cosine["straight-through"], "quantization_error", LESS),
        Claim("000 table 1", cosine["rotation"], cosine["straight-through"], "usage", MORE),
    ]
    for other, error in ((hessian, LESS), (exact, MORE)):
        found += [
            Claim("000 table 1", other, plain, "reconstruction", MORE),
            Claim("000 table 1", other, rotation, "reconstruction", MORE),
            Claim("000 table 1", other, plain, "quantization_error", error),
            Claim("000 table 1", other, plain, "usage", LESS),
        ]
    for codebook, name in (
        ("affine", "affine"),
        ("opt", "OPT"),
        ("sync", "sync"),
        ("affine-opt-sync", "affine + OPT + sync"),
    ):
        found.append(Claim("001 table 2", method(name, codebook=codebook), gradient, "perplexity", MORE))
    found += [
        Claim(
            "001 table 2", method("affine + OPT + sync", codebook="affine-opt-sync"), gradient, "reconstruction", LESS
        ),
        Claim("001 table 1", replaced, collapsing, "usage", MORE),
        Claim("001 table 1", replaced, collapsing, "perplexity", MORE),
        Claim("practice", plain, gradient, "relative_error", LESS),
        Claim("practice", plain, gradient, "reconstruction", LESS),
        Claim("001 A.1", betas[0.9], betas[0.5], "reconstruction", LESS),
        Claim("001 A.1", betas[0.9], betas[0.995], "reconstruction", LESS),
        Claim("001 A.1", half, single, "reconstruction", EQUAL),
        Claim("001 A.1", half, single, "quantization_error", EQUAL),
    ]
    return found


def interval(x: np.ndarray, level: float) -> tuple[float, float, float]:
    """Return Hodges and Lehmann's estimate of the centre, and the exact signed-rank interval of error ``level``.

    Raises:
        ValueError: if so few numbers allow no interval.
    """
    n = len(x)
    counts = np.ones(1)
    for rank in range(1, n + 1):
        longer = np.zeros(len(counts) + rank)
        longer[: len(counts)] += counts
        longer[rank:] += counts
        counts = longer
    tail = np.cumsum(counts) / 2.0**n
    cut = int((tail <= level / 2).sum())
    if cut == 0:
        raise ValueError(f"{n} seeds allow no interval of error {level:g}")
    first, second = np.triu_indices(n)
    walsh = np.sort((x[first] + x[second]) / 2)
    return float(np.median(walsh)), float(walsh[cut - 1]), float(walsh[-cut])


def verdict(direction: str, low: float, high: float) -> str:
    """Return what the interval of a ratio says about a claim."""
    if direction == EQUAL:
        within = (low >= 1 - SAME, high <= 1 + SAME)
        beyond = high < 1 - SAME or low > 1 + SAME
        return "supported" if all(within) else "not supported" if beyond else "undecided at this size"
    if low <= 1 <= high:
        return "undecided at this size"
    return "supported" if (high < 1) == (direction == LESS) else "not supported"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[name for name in TASKS if name != "spiral"], default="digits")
    parser.add_argument("--only", default="*", metavar="GLOB", help="sources, as '001 table*'; intervals stay as wide")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    every, start = claims(args.task), time.process_time()
    level = (1 - CONFIDENCE) / len(every)
    try:
        interval(np.zeros(args.seeds), level)
        TASKS[args.task].data()
    except (ValueError, MissingPackageError) as error:
        parser.error(str(error))
    print(
        f"\n## Claims on {args.task}: {args.seeds} seeds, {args.steps} steps, all intervals together {CONFIDENCE:.0%}\n"
    )
    print("| source | claim | new | old | ratio (interval) | verdict |\n|---|---|---|---|---|---|", flush=True)
    done: dict[str, list[Curve]] = {}
    tally: dict[str, int] = {}
    for claim in every:
        if not fnmatch.fnmatch(claim.source, args.only):
            continue
        for side in (claim.new, claim.old):
            if side.recipe.name not in done:
                done[side.recipe.name] = [side.train(seed, args.steps) for seed in range(args.seeds)]
        new, old = (
            np.array([curve.final(claim.watched) for curve in done[side.recipe.name]])
            for side in (claim.new, claim.old)
        )
        centre, low, high = np.exp(interval(np.log(new / old), level))
        says = verdict(claim.direction, low, high)
        tally[says] = tally.get(says, 0) + 1
        words = claim.watched.replace("_", " ")
        text = f"{claim.new.name} has {claim.direction} {words} than {claim.old.name}"
        if claim.direction == EQUAL:
            text = f"{claim.new.name} has the same {words} as {claim.old.name}"
        numbers = f"{new.mean():.3g} | {old.mean():.3g} | {centre:.3f} ({low:.3f} - {high:.3f})"
        print(f"| {claim.source} | {text} | {numbers} | {says} |", flush=True)
    print(
        f"\n{', '.join(f'{number} {says}' for says, number in tally.items())}; {time.process_time() - start:.0f} s of CPU time"
    )


if __name__ == "__main__":
    main()
