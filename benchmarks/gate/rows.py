"""What a comparison says: one row a case, a table, an exit code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

BAD = ("slower", "worse", "moved")
VERDICTS = ("failed", *BAD, "faster", "better", "undecided", "new", "unchanged")


@dataclass(frozen=True)
class Row:
    """What is known about one case.

    Attributes:
        group: name of the group.
        case: name of the case.
        verdict: one of :data:`VERDICTS`. ``undecided``: too noisy to exclude the change that the gate promises to
            see; ``new``: the base lacks what the case runs; ``moved``: a training changed in numbers of which neither
            way is worse, such as norms, which wrong gradients move first.
        change: how much more HEAD takes, as text; with its interval where it is measured.
        how: how many pairs, in which noise; or why it failed.
    """

    group: str
    case: str
    verdict: str
    change: str = ""
    how: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}; it was {self.verdict!r}")


def exit_code(rows: list[Row]) -> int:
    """Return 2 if a case failed (or there is none), else 1 if one is slower, worse or moved, else 0."""
    verdicts = {row.verdict for row in rows}
    if not rows or "failed" in verdicts:
        return 2
    return int(not verdicts.isdisjoint(BAD))


def table(rows: list[Row]) -> str:
    """Return a Markdown table, what matters most first, and a line that counts the verdicts."""
    cells = [("verdict", "group", "case", "change", "measured")]
    cells += [
        (row.verdict, row.group, row.case, row.change, row.how.strip().splitlines()[-1] if row.how.strip() else "")
        for row in sorted(rows, key=lambda row: VERDICTS.index(row.verdict))
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    counted = Counter(row.verdict for row in rows)
    lines += ["", ", ".join(f"{counted[v]} {v}" for v in VERDICTS if counted[v]) or "no case ran"]
    return "\n".join(lines)
