"""Measure the gate's false alarms: record identical pairs, and judge resampled runs of them.

`python -m benchmarks.gate.calibrate FILE [--batches 4] [--resamples 1000]` runs HEAD against itself for so many batches,
adds their log ratios to FILE, and then judges so many runs that are drawn from FILE (see `resample`). `--batches 0`
only resamples. Exit 1 if a resampled run alarms.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from pathlib import Path

from benchmarks.gate import compare, groups, judge
from benchmarks.gate.trees import checkouts


def record(batches: int, log: compare.Log) -> compare.Records:
    """Return log ratios of pairs of HEAD against itself, by case; all cases run in every pair."""
    with checkouts("HEAD", "HEAD", Path.cwd()) as (base, head):
        timings = compare.Timings({name: [] for name in compare.list_cases(list(groups.TIMED))})
        for i in range(batches):
            log(f"batch {i + 1} of {batches}")
            compare.run_batch((base, head) if i % 2 else (head, base), timings, math.inf, log)
    for row in timings.rows.values():
        raise SystemExit(f"{row.group}: {row.case}: {row.how}")
    return {": ".join(name): values for name, values in timings.ratios.items()}


def resample(records: compare.Records, rng: random.Random, shift: float = 0.0) -> dict[str, str]:
    """Return the verdicts of one run that is drawn from records.

    A batch is drawn, its pairs with replacement, and one sign for all of them: in identical runs either side might
    have been the base, and what the pairs of a batch share stays shared.

    Args:
        records: log ratios of identical pairs, by case.
        rng: draws them.
        shift: log of a slowdown to add to every case: how often is it seen?
    """
    verdicts: dict[str, str] = {}
    for case, values in records.items():
        batches = judge.batches_of(values)
        drawn: list[float] = []
        for i in range(judge.BATCHES):
            batch, sign = rng.choice(batches), rng.choice((-1, 1))
            drawn += [sign * rng.choice(batch) + shift for _ in range(judge.BATCH)]
            verdict = judge.decide(drawn, len(records), last=i == judge.BATCHES - 1)
            if verdict:
                verdicts[case] = verdict
                break
    return verdicts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate.calibrate", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args(arguments)
    records: compare.Records = json.loads(options.file.read_text("utf-8")) if options.file.exists() else {}
    if options.batches:
        for case, values in record(options.batches, lambda text: print(text, file=sys.stderr)).items():
            records[case] = records.get(case, []) + values
        part = options.file.with_name(options.file.name + ".part")
        part.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
        part.replace(options.file)
    if not records:
        parser.error(f"{options.file} holds no records, and --batches 0 adds none")
    for case, values in records.items():
        print(f"{case}: {len(values)} pairs, noise {100 * statistics.stdev(values):.1f}%")
    rng = random.Random(0)
    alarms = 0
    for _ in range(options.resamples):
        alarms += bool({"slower", "faster"} & set(resample(records, rng).values()))
    seen = dict.fromkeys(records, 0)
    trials = max(1, options.resamples // 10)
    for _ in range(trials):
        for case, verdict in resample(records, rng, judge.PROMISE).items():
            seen[case] += verdict == "slower"
    print(f"false alarms: {alarms} of {options.resamples} resampled runs of {len(records)} cases")
    for case, count in seen.items():
        print(f"a slowdown of 10% seen: {count} of {trials}: {case}")
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
