"""The false-alarm campaign: right layers under seeds drawn anew, most examples where bounds are tight.

`python properties/campaign.py --examples 1000000 --folder DIR --json FILE` goes on from what an earlier run left in DIR.
Prints every alarm, and for each numeric row the largest margin seen; exit 1 on an alarm, and on a slack bound: a margin
that stays below 1e-3 where the row's docstring has no `Margin:` that says why.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import sys
import tempfile
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pebble import ProcessPool

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # variants, and the layers of tests
MUST = ("law", "contract")  # a limit of floating-point numbers may be met by a right layer
BLOCKS = ((0.1, 24), (0.01, 8), (0.0, 2))  # blocks of 25 examples for a row, by the margin that its first examples show
IMPORTS = ["vqverify.run.runner", "vqverify.invariants", "vqverify.subject", "vqverify.discovery", "vqverify.identify"]
LEAST = 1e-3  # a bound that nothing comes near would catch nothing either
LIMIT = 900.0  # seconds for one layer under one seed


@dataclass(frozen=True)
class Trial:
    """One right layer under one seed, and the rows that it is known to break."""

    target: str
    kwargs: dict[str, Any]
    skip: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        """Of the layer."""
        return f"{self.target} {json.dumps(self.kwargs)}"


def layers() -> Iterator[Trial]:
    """Every layer that must pass: the references of subjects.toml, and those of right.toml, in other styles."""
    for file in ("subjects.toml", "right.toml"):
        for layer in tomllib.loads((HERE / file).read_text("utf-8")).values():
            if not layer["target"].startswith("vector_quantize_pytorch"):
                yield Trial(layer["target"], layer["kwargs"], tuple(layer.get("skip", ())), secrets.randbelow(2**31))


def trial(it: Trial) -> dict[str, Any]:
    """Check one layer: quick, then more of each row that searches, the more the closer its margin comes to 1."""
    import torch

    from vqverify import engine
    from vqverify.examples import Profile
    from vqverify.invariant import registry
    from vqverify.quantizer import Spec
    from vqverify.run import opening

    torch.set_num_threads(1)
    spec = Spec(it.target, it.kwargs, seed=it.seed)
    examples, alarms, margins = 0, [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = opening.opened(spec).subject
    assert subject is not None
    for row in registry().values():
        if "quick" not in row.profiles or row.id in it.skip:
            continue
        profile, seed = Profile("quick", 1), it.seed
        while True:
            results = engine.run(engine.Job(spec, (row.id,), profile, seed), lambda _: subject).results
            examples += sum(result.examples for result in results)
            alarms += [
                (result.invariant, result.case, result.label, seed, result.message or result.reason)
                for result in results
                if result.status in {"failed", "error"} and result.kind in MUST
            ]
            shown = [result.margin for result in results if result.status == "passed"]
            if not shown:
                break
            seen = max((margin for margin in shown if margin is not None), default=None)
            if seen is not None:
                margins[row.id] = max(seen, margins.get(row.id, 0.0))
            if seed != it.seed or row.mode != "search":
                break
            profile, seed = (
                Profile("quick", next(count for least, count in BLOCKS if (seen or 0.0) >= least)),
                it.seed + 1,
            )
    return {"layer": it.key, "seed": it.seed, "examples": examples, "alarms": alarms, "margins": margins}


def run(total: int, folder: Path, jobs: int) -> list[dict[str, Any]]:
    """Trials of all layers in turn, until so many examples were tried; what is in the folder counts."""
    folder.mkdir(parents=True, exist_ok=True)
    done = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    while sum(part["examples"] for part in done) < total:
        had = Counter(part["layer"] for part in done)
        everyone = list(layers())
        least = min(had[it.key] for it in everyone)
        turn = [it for it in everyone if had[it.key] == least][: 4 * jobs]
        with ProcessPool(max_workers=jobs, max_tasks=4, context=context) as pool:
            futures = [(it, pool.schedule(trial, args=(it,), timeout=LIMIT)) for it in turn]
            for it, future in futures:
                try:
                    part = future.result()
                except Exception as error:  # noqa: BLE001  (a right layer opens, and ends)
                    alarm = ("opening", None, type(error).__name__, it.seed, str(error))
                    part = {"layer": it.key, "seed": it.seed, "examples": 0, "alarms": [alarm], "margins": {}}
                done.append(part)
                (folder / f"{len(done):05d}.json").write_text(json.dumps(part), "utf-8")
                for alarm in part["alarms"]:
                    print("ALARM", it.key, *alarm, flush=True)
    return done


def summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals, alarms, and the largest margin of each row."""
    margins: dict[str, tuple[float, str]] = {}
    for part in done:
        for row, margin in part["margins"].items():
            margins[row] = max(margins.get(row, (0.0, "")), (margin, part["layer"]))
    return {
        "trials": len(done),
        "examples": sum(part["examples"] for part in done),
        "alarms": [[part["layer"], *alarm] for part in done for alarm in part["alarms"]],
        "margins": dict(sorted(margins.items())),
        "slack": sorted(row for row, (margin, _) in margins.items() if margin < LEAST and not _explained(row)),
    }


def _explained(row: str) -> bool:
    """Return whether the docstring says why margins are small."""
    from vqverify.invariant import registry

    return "Margin:" in (registry()[row].check.__doc__ or "")


def main() -> int:
    """Run, print, and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = summary(run(given.examples, given.folder or Path(temporary), given.jobs))
    for row, (margin, where) in found["margins"].items():
        print(f"{row:32} {margin:9.2e}  {where}")
    print(f"{found['trials']} trials, {found['examples']:,} examples, {len(found['alarms'])} alarms")
    for row in found["slack"]:
        print(f"SLACK {row}: {found['margins'][row][0]:.2e}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), "utf-8")
    return 1 if found["alarms"] or found["slack"] else 0


if __name__ == "__main__":
    sys.exit(main())
