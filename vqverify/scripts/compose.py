"""A witness as a standalone program: at most 15 lines that need torch and the library alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from vqverify.scripts.numerals import WIDTH, folded, literal
from vqverify.scripts.registry import Written, written
from vqverify.scripts.scene import Scene, Unscripted
from vqverify.subject import target
from vqverify.subject.layer import Layer
from vqverify.witness import Witness

LINES = 15
NEEDS_GRAD = "z.requires_grad_()"  # as the first line of a body: written where z is
FIRST_CALL = "first call"  # the part of a row that looks at a layer before its first pass
MODULES = ("copy", "pickle", "random")


def ways(subject: Layer, witness: Witness, package: str = "") -> Iterator[str]:
    """Every way to write a witness as a script, the most readable first; which of them fails is for others to see.

    Args:
        subject: the layer, opened from the witness's spec.
        witness: what failed on it.
        package: name and version of the library, for the first line.

    Raises:
        Unscripted: if there is none; the message says why.
    """
    row = written().get(witness.invariant)
    if row is None:
        raise Unscripted(f"no script is written for the row {witness.invariant}")
    if witness.spec.role != "layer":
        raise Unscripted("the subject is a bare function")
    if witness.spec.device not in {None, "cpu"}:
        raise Unscripted(f"the subject lives on the device {witness.spec.device}")
    reasons: list[str] = []
    found = False
    for variant in range(row.variants):
        for importing, name in _imports(witness):
            for stated in (True, False) if row.stated and _touched(witness) else (row.stated,):
                try:
                    text = _composed(row, Scene(subject, witness, variant, name), importing, package, stated=stated)
                except Unscripted as reason:
                    reasons.append(str(reason))
                else:
                    found = True
                    yield text
    if not found:
        raise Unscripted(reasons[0])


def _touched(witness: Witness) -> bool:
    """Whether the witness starts from another state than the one that the layer is built with."""
    return witness.case.codebook is not None or bool(witness.case.history)


def _composed(row: Written, scene: Scene, importing: tuple[str, str, str], package: str, *, stated: bool) -> str:
    body = list(row.body(scene))
    trains = any(".train()" in line for line in body)
    state = list(scene.state(trains=trains)) if stated else []
    warm = list(scene.warmed()) if row.warm and scene.part != FIRST_CALL else []
    values = {name: literal(tensor) for name, tensor in (("z", scene.case.z), ("g", scene.case.g))}
    if body[0] == NEEDS_GRAD:
        body, values["z"] = body[1:], f"{values['z']}.requires_grad_()"
    written_ = [f"{name} = {value}" for name, value in values.items() if _uses(name, body)]
    body = [*warm, *state, *written_, *body]
    layer = [f"torch.manual_seed({scene.witness.spec.seed})", f"layer = {scene.constructor()}"]
    found, placed, name = importing
    head = [_title(scene, package), _imported([*body, *layer], placed), f"from {found} import {name}"]
    return _fitted([*head, *(layer if _uses("layer", body) else []), *body])


def _fitted(lines: list[str]) -> str:
    """Lines that are few and short enough, made fewer where they have to be.

    Raises:
        Unscripted: if they are too many, or too long.
    """
    for tighter in (list[str], _seeds_in_line, _whole):
        lines = tighter(lines)
        pieces = [piece for line in lines for piece in folded(line)]
        if len(pieces) <= LINES:
            break
    longest = max(map(len, pieces))
    if len(pieces) > LINES or longest > WIDTH:
        what = f"{len(pieces)} lines" if len(pieces) > LINES else f"a line of {longest} characters"
        raise Unscripted(f"it would have {what}; {LINES} lines of {WIDTH} are the most")
    return "\n".join([*pieces, ""])


def _seeds_in_line(lines: list[str]) -> list[str]:
    """Seeds on the line of what they are for."""
    found: list[str] = []
    for line in lines:
        seeded = bool(found) and found[-1].startswith("torch.manual_seed") and not line.startswith(("for", "with"))
        if seeded and ";" not in found[-1]:
            found[-1] = f"{found[-1]}; {line}"
        else:
            found.append(line)
    return found


def _whole(lines: list[str]) -> list[str]:
    """Both tensors in place of the entries that are farthest apart."""
    kept = [line for line in lines if not line.startswith("i = ")]
    return [re.sub(r'f"\{(\w+)\.flatten\(\)\[i\]:\.7g\}"', r"\1.tolist()", line) for line in kept]


def _title(scene: Scene, package: str) -> str:
    witness = scene.witness
    case = f"[{witness.case.part}]" if witness.case.part else ""
    message = " ".join(witness.message.split())
    text = f"# {package}{', ' if package else ''}{witness.invariant}{case} {witness.label}: {message}"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 2]} …"


def _uses(name: str, lines: list[str]) -> bool:
    """Whether lines read a name that they did not bind before."""
    for node in ast.parse("\n".join(lines)).body:
        names = [found for found in ast.walk(node) if isinstance(found, ast.Name) and found.id == name]
        if any(isinstance(found.ctx, ast.Load) for found in names):
            return True
        if names:
            return False
    return False


def _imported(lines: list[str], place: str) -> str:
    """The line that imports torch and what of Python is used; `place` is the folder of the user's own file."""
    names = ["sys"] * bool(place) + [m for m in MODULES if any(re.search(rf"\b{m}\.", line) for line in lines)]
    names += ["numpy as np"] * any(re.search(r"\bnp\.", line) for line in lines) + ["torch"]
    names += ["torch.nn.functional as F"] * any(re.search(r"\bF\.", line) for line in lines)
    return f"import {', '.join(names)}" + (f'; sys.path.insert(0, "{place}")' if place else "")


def _imports(witness: Witness) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Module, folder of the user's own file, and first name; and the constructor. The library itself comes first."""
    place, _, name = witness.spec.target.rpartition(":")
    if not place.endswith(".py"):
        yield (place, "", name.partition(".")[0]), name
        return
    kind, file = target.load(witness.spec.target), Path(place)
    home = str(getattr(kind, "__module__", ""))
    if isinstance(kind, type) and not home.startswith(file.stem):
        yield (home, "", kind.__qualname__.partition(".")[0]), kind.__qualname__
    yield (file.stem, file.parent.as_posix(), name.partition(".")[0]), name
