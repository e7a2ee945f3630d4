"""What a script prints and asserts at its end: the number that is wrong beside the number that is right."""

from __future__ import annotations

from collections.abc import Iterator


def compare(
    wrong: str, right: str, said: str, *, size: str = "right.norm()", tol: float = 1e-4, must: str = "and must be"
) -> Iterator[str]:
    """The number that is wrong beside the number that is right, and the assertion that they agree."""
    together = f"wrong, right = {wrong}, {right}"
    if {wrong, right} & {"wrong", "right"} or len(together) > 110:
        yield from (f"{name} = {value}" for name, value in (("wrong", wrong), ("right", right)) if name != value)
    else:
        yield together
    yield from shown(said, must=must)
    yield f"assert torch.dist(wrong, right) <= {tol:g} * {size}"


def shown(said: str, must: str = "and must be") -> Iterator[str]:
    """The entries of `wrong` and `right` that are farthest apart."""
    yield "i = (wrong - right).abs().argmax()  # where they are farthest apart"
    yield f'print("{said}", f"{{wrong.flatten()[i]:.7g}}", "{must}", f"{{right.flatten()[i]:.7g}}")'


def equal(wrong: str, right: str, said: str, must: str = "and must be") -> Iterator[str]:
    """The same for what must be equal bit by bit."""
    yield f"wrong, right = {wrong}, {right}"
    yield f'print("{said}", wrong, "{must}", right)'
    yield "assert torch.equal(wrong, right)"
