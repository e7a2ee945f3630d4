"""What must be found about each style: written down from reading its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import styles

if TYPE_CHECKING:
    from torch import nn

    from vqverify.subject.plan import Plan


@dataclass(frozen=True)
class Want:
    """The conclusions about one style, in terms that survive a change of names."""

    cls: type[nn.Module]
    kwargs: dict[str, Any]
    dim: int
    layout: str
    z_q: tuple[str | int, ...]
    codes: tuple[tuple[tuple[str | int, ...], str], ...]
    losses: tuple[tuple[str | int, ...], ...]
    slots: tuple[tuple[str, tuple[int, ...], bool, str], ...]
    accumulators: tuple[tuple[str, str], ...] = ()
    decoders: tuple[str, ...] = ()
    warm: int = 0
    sphere: bool = False
    method: str = "__call__"


def plain(name: str, *index: int) -> tuple[str, tuple[int, ...], bool, str]:
    return name, index, False, "identity"


WANTED = (
    Want(
        styles.ImageTuple,
        {"n_e": 16, "e_dim": 6},
        6,
        "BDHW",
        (0,),
        (((2, 2), "F1"),),
        ((1,),),
        (plain("embedding.weight"),),
    ),
    Want(
        styles.LossFirst,
        {"num_embeddings": 16, "embedding_dim": 6},
        6,
        "BDHW",
        (1,),
        (((3,), "FK"),),
        ((0,),),
        (plain("embedding.weight"),),
        (("cluster", "ema_w"),),
    ),
    Want(
        styles.Transposed,
        {"dim": 6, "n_embed": 16},
        6,
        "BND",
        (0,),
        (((2,), "BN"),),
        ((1,),),
        (("embed", (), True, "identity"),),
        (("cluster_size", "embed_avg"),),
        ("embed_code",),
    ),
    Want(
        styles.Sequence,
        {},
        6,
        "BND",
        ("out",),
        ((("stats", "codes"), "BN"),),
        (("loss",),),
        (plain("table"),),
        (),
        ("lookup",),
    ),
    Want(
        styles.Projected,
        {},
        10,
        "BDN",
        ("audio",),
        ((("ids",), "BN"),),
        (("penalty",),),
        (plain("codebook.weight"),),
        (),
        ("decode",),
    ),
    Want(
        styles.Flat,
        {},
        8,
        "BDHW",
        (1,),
        (((0,), "F"),),
        ((2,),),
        (("e.weight", (), False, "normalize"),),
        sphere=True,
    ),
    Want(
        styles.Stack,
        {},
        6,
        "BND",
        (1,),
        tuple(((0, level), "BN") for level in range(3)),
        tuple((2, level) for level in range(3)),
        tuple(plain(f"books.{level}") for level in range(3)),
    ),
    Want(
        styles.LevelsFirst,
        {},
        6,
        "BDN",
        (0,),
        (((1,), "LBN"),),
        ((2,),),
        (plain("books", 0), plain("books", 1)),
        (("counts", "sums"), ("counts", "sums")),
        ("decode",),
        warm=1,
    ),
    Want(styles.Grouped, {}, 8, "BND", (0,), (((1,), "BLN"),), ((2,),), (plain("w", 0), plain("w", 1))),
    Want(styles.NoCodes, {}, 5, "BND", (0,), (), ((1,),), (plain("book"),)),
    Want(styles.Bare, {}, 4, "BND", (), (), (), (plain("book"),)),
    Want(styles.Levels, {"levels": [5, 3, 7]}, 3, "BND", ("values",), ((("tokens",), "BN"),), (), ()),
    Want(styles.Logits, {}, 7, "BDHW", (0,), (((2, 2), "BHW"),), ((1,),), (plain("embed.weight"),)),
    Want(styles.Named, {}, 6, "BND", (0,), (((1,), "BN"),), ((2,),), (plain("book"),), method="quantize"),
    Want(styles.Sphere, {}, 6, "ND", (0,), (((2,), "N"),), ((1,),), (plain("book"),), sphere=True),
    Want(styles.Signs, {}, 4, "BDN", (1,), (((2,), "F1"),), ((0,),), ()),
    Want(
        styles.Watched,
        {},
        6,
        "BND",
        (0,),
        (((1,), "BN"),),
        ((2,),),
        (plain("book"),),
        (("counts", "sums"),),
    ),
    Want(
        styles.Coder,
        {},
        6,
        "BDN",
        (0,),
        (((1,), "LBN"),),
        (),
        (plain("books.0"), plain("books.1")),
        method="encode",
    ),
    Want(styles.TwoFaced, {}, 6, "BND", (0,), (((1,), "BN"),), (), (plain("book"),)),
    Want(styles.Padded, {}, 6, "BND", (0,), (((2,), "BN"),), ((1,),), (plain("table.weight"),), (("used", "sums"),)),
    Want(styles.Lazy, {"k_bins": 16, "emb_width": 6}, 6, "BDN", (1,), (((0,), "BN"),), ((2,),), (plain("k"),), warm=1),
    Want(styles.Told, {}, 4, "BDN", (0, 0), (((0, 1), "BN"),), ((1,),), ()),
)


def found(plan: Plan) -> dict[str, Any]:
    """A plan in the terms of `Want`."""
    call = plan.calls[0]
    return {
        "dim": plan.dim,
        "layout": call.layout,
        "z_q": call.z_q.path,
        "codes": tuple((output.path, output.form) for output in call.codes),
        "losses": tuple(output.path for output in call.losses),
        "slots": tuple((slot.name, slot.index, slot.transposed, slot.transform) for slot in plan.slots),
        "accumulators": tuple((counts.name, sums.name) for counts, sums in plan.accumulators),
        "decoders": tuple(decoder.method for decoder in plan.decoders),
        "warm": plan.warm,
        "sphere": plan.sphere,
        "method": plan.method,
    }


def wanted(want: Want) -> dict[str, Any]:
    return {name: getattr(want, name) for name in found_names()}


def found_names() -> tuple[str, ...]:
    return (
        "dim",
        "layout",
        "z_q",
        "codes",
        "losses",
        "slots",
        "accumulators",
        "decoders",
        "warm",
        "sphere",
        "method",
    )
