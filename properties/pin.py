"""Write applies.toml anew: which rows are decided on each layer now. Look at what `git diff` takes away before you commit."""

from __future__ import annotations

import sys

from vqverify import check_quantizer

sys.path.insert(0, __file__.rpartition("/")[0])
from subjects import HERE, subjects

OPEN = {"n/a", "undetermined", "error"}


def main() -> None:
    """One table a layer."""
    lines: list[str] = ["# Written by pin.py."]
    for subject in subjects():
        results = check_quantizer(subject.target, subject.kwargs, only=subject.only).subjects[0].results
        undecided = {result.invariant for result in results if result.status in OPEN}
        ids = [id_ for id_ in dict.fromkeys(result.invariant for result in results) if id_ not in undecided]
        lines += ["", f"[{subject.name}]", "applies = [", *(f'    "{id_}",' for id_ in ids), "]"]
    (HERE / "applies.toml").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
