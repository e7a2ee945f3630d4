"""The gate's command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.gate import compare, curves, groups
from benchmarks.gate.rows import Row, exit_code, table
from benchmarks.gate.trees import RevisionError, Tree, checkouts


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    made.add_argument("base", help="the older commit")
    made.add_argument("head", help="the newer commit")
    made.add_argument("--group", action="append", choices=groups.GROUPS, help="compare this group only (repeatable)")
    made.add_argument("--minutes", type=float, help="begin no pair after so long: 2.5 with --group, 8 without")
    made.add_argument("--json", type=Path, help="write rows and log ratios here")
    return made


def run(base: Tree, head: Tree, chosen: tuple[str, ...], minutes: float) -> tuple[list[Row], dict[str, list[float]]]:
    """Compare two commits in the chosen groups; what does not vary comes first."""
    until = time.monotonic() + 60 * minutes
    rows: list[Row] = []
    for group in groups.COUNTED:
        if group in chosen:
            rows += compare.counted(base, head, group)
    for group in groups.JUDGED:
        if group in chosen:
            rows += curves.judged(base, head, group, until=until, log=say)
    timed = [group for group in groups.TIMED if group in chosen]
    if not timed:
        return rows, {}
    found, ratios = compare.timed(base, head, timed, until=until, log=say)
    return rows + found, ratios


def say(text: str) -> None:
    print(text, file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    chosen = tuple(options.group or groups.GROUPS)
    minutes = options.minutes or (2.5 if len(chosen) == 1 else 8)
    start = time.monotonic()
    try:
        with checkouts(options.base, options.head, Path.cwd()) as (base, head):
            print(f"base {base.commit[:12]}, head {head.commit[:12]}", file=sys.stderr)
            rows, ratios = run(base, head, chosen, minutes)
    except RevisionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    code = exit_code(rows)
    for row in rows:
        if row.verdict == "failed":
            print(f"{row.group}: {row.case}\n{row.how}", file=sys.stderr)
    print(table(rows))
    print(f"exit {code}, after {time.monotonic() - start:.0f} s")
    if options.json:
        record = {"base": base.commit, "head": head.commit, "rows": [vars(row) for row in rows], "ratios": ratios}
        part = options.json.with_name(options.json.name + ".part")
        part.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        part.replace(options.json)
    return code


if __name__ == "__main__":
    sys.exit(main())
