"""Write applies.toml anew: which rows apply to each layer now. Look at what `git diff` takes away before you commit it."""

from __future__ import annotations

import sys

from vqverify.invariant import applicability, registry
from vqverify.quantizer import Spec
from vqverify.subject import open_subject

sys.path.insert(0, __file__.rpartition("/")[0])
from subjects import HERE, subjects


def main() -> None:
    """One table a layer."""
    lines: list[str] = ["# Written by pin.py."]
    for subject in subjects():
        traits = open_subject(Spec(subject.target, subject.kwargs)).traits
        ids = [row.id for row in registry().values() if applicability(row, traits).verdict == "applies"]
        lines += ["", f"[{subject.name}]", "applies = [", *(f'    "{id_}",' for id_ in ids), "]"]
    (HERE / "applies.toml").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
