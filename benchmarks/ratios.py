"""Tables of ratios, as Markdown: `python -m benchmarks.ratios [TABLE]...`.

One thread, and its time on the processor, unless `--threads` says otherwise. A cell is the median of five runs with the
extremes; a run is the median ratio of interleaved calls.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping

import torch

from benchmarks import _cases, _measure, estimator, growth, layer, memory, update
from benchmarks._table import Case


def lookup(args: argparse.Namespace) -> None:
    print("\n## Certified exact lookup, ratio to the bare matrix product\n")
    print("| N,K,D | buffered product (4 MiB) | tiled product (1 MiB) | full product |")
    print("|---|---|---|---|")
    names = ("buffered", "tiled", "full")
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for n, k, d in shapes(args):
        z, codes = _cases.data(n, k, d)
        bases = {
            "buffered": lambda z=z, codes=codes: _cases.product_buffered(z, codes),
            "tiled": lambda z=z, codes=codes: _cases.product_tiled(z, codes),
        }
        if n * k <= 2**27:
            bases["full"] = lambda z=z, codes=codes: _cases.product_full(z, codes)
        cells = dict.fromkeys(names, "-")
        work = {"ours": lambda z=z, codes=codes: _cases.ours(z, codes), **bases}
        collected: dict[str, list[float]] = {name: [] for name in bases}
        for _ in range(args.runs):
            taken = _measure.samples(work, cpu=args.threads == 1)
            for name, values in collected.items():
                values.append(_measure.paired(taken, "ours", name))
        for name, values in collected.items():
            ratio = _measure.Ratio(statistics.median(values), min(values), max(values))
            cells[name] = str(ratio)
            found[name].append((d, ratio.median))
        print(f"| {n},{k},{d} | " + " | ".join(cells[name] for name in names) + " |", flush=True)
    for label, least in (("all", 0), ("D >= 64", 64)):
        means = [statistics.geometric_mean([r for d, r in found[name] if d >= least]) for name in names]
        print(f"| geometric mean, {label} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")


def others(args: argparse.Namespace) -> None:
    print("\n## Other lookups, ratio to ours (above 1: ours is faster)\n")
    print("| N,K,D | cdist + argmin | addmm + argmin | vector-quantize-pytorch (eval pass) | faiss flat |")
    print("|---|---|---|---|---|")
    for n, k, d in shapes(args):
        if n * k > 2**26:
            continue
        z, codes = _cases.data(n, k, d)
        theirs = _cases.vq_pytorch(d, k)
        search = _cases.faiss_flat(codes)
        work = {
            "ours": lambda z=z, codes=codes: _cases.ours(z, codes),
            "cdist": lambda z=z, codes=codes: _cases.cdist_argmin(z, codes),
            "addmm": lambda z=z, codes=codes: _cases.addmm_argmin(z, codes),
        }
        if theirs is not None:
            work["vqp"] = torch.no_grad()(lambda z=z, theirs=theirs: theirs.eval()(z))
        if search:
            work["faiss"] = lambda z=z, search=search: search(z)
        cells = _measure.ratios(work, "ours", runs=args.runs, cpu=args.threads == 1)
        print(
            f"| {n},{k},{d} | " + " | ".join(str(cells.get(c, "-")) for c in ("cdist", "addmm", "vqp", "faiss")) + " |",
            flush=True,
        )


def estimators(args: argparse.Namespace) -> None:
    print("\n## Rotation estimator, forward and backward, ratio to z + (q - z).detach()\n")
    print("| N,D | rotation |\n|---|---|")
    for n, d in ((65536, 64), (16384, 256), (65536, 128), (65536, 8), (4096, 64)):
        work = estimator.work(Case(n, 1, d, "rotation"))
        found = _measure.ratios(work, "plain", runs=args.runs, cpu=args.threads == 1)
        print(f"| {n},{d} | {found['ours']} |", flush=True)


def layers(args: argparse.Namespace) -> None:
    print("\n## Training step with rotation, ratio to others\n")
    print("| N,K,D | the same with straight-through | vector-quantize-pytorch, rotation |\n|---|---|---|")
    for n, k, d in ((4096, 1024, 64), (4096, 8192, 64), (4096, 512, 8)):
        work = layer.work(Case(n, k, d, "rotation"))
        names = ("straight-through", "vector-quantize-pytorch")
        cells = [
            str(_measure.ratios(_pair(work, name), name, runs=args.runs, cpu=args.threads == 1)["ours"])
            if name in work
            else "-"
            for name in names
        ]
        print(f"| {n},{k},{d} | " + " | ".join(cells) + " |", flush=True)


def _pair(work: Mapping[str, _measure.Work], name: str) -> dict[str, _measure.Work]:
    return {key: work[key] for key in ("ours", name)}


def updates(args: argparse.Namespace) -> None:
    print("\n## EMA statistics, time of the one-hot product over ours\n")
    print("| N,K,D | one-hot |\n|---|---|")
    for n, k, d in ((4096, 1024, 64), (4096, 1024, 8), (16384, 1024, 64)):
        work = update.work(Case(n, k, d, "statistics"))
        found = _measure.ratios(work, "ours", runs=args.runs, cpu=args.threads == 1)
        print(f"| {n},{k},{d} | {found['one-hot']} |", flush=True)


def growths(_args: argparse.Namespace) -> None:
    print("\n## Growth: p of size^p\n")
    print("| operation | time | memory |\n|---|---|---|")
    for name, row in growth.measured().items():
        print(f"| {name} | {row['time']:.2f} | {row['memory']:.2f} |", flush=True)


def memories(_args: argparse.Namespace) -> None:
    print("\n## Memory of a lookup beyond inputs, outputs and one copy of the codebook, MiB\n")
    print("| N,K,D | ours | ours, clusters | cdist + argmin |\n|---|---|---|---|")
    for n, k, d in ((4096, 8192, 64), (16384, 2048, 64), (65536, 1024, 256), (4096, 65536, 64), (1024, 8192, 256)):
        cells = [memory.extra(Case(n, k, d, method)) / 2**20 for method in ("euclidean", "clusters", "cdist")]
        print(f"| {n},{k},{d} | " + " | ".join(f"{c:.1f}" for c in cells) + " |", flush=True)


def shapes(args: argparse.Namespace) -> list[tuple[int, int, int]]:
    return [shape for shape in _cases.SHAPES if shape[0] in args.n and shape[1] in args.k]


TABLES = {
    "lookup": lookup,
    "others": others,
    "estimator": estimators,
    "layer": layers,
    "update": updates,
    "memory": memories,
    "growth": growths,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--n", type=int, nargs="*", default=[4096, 65536], help="batch sizes of the lookup")
    parser.add_argument("--k", type=int, nargs="*", default=[512, 1024, 8192], help="its codebook sizes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.tables:
        if name not in TABLES:
            parser.error(f"no table {name!r}; there are {', '.join(TABLES)}")
        TABLES[name](args)


if __name__ == "__main__":
    main()
