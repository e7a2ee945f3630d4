"""What layers are, as their code reads: traits that identification must find; None is what it must leave open."""

from __future__ import annotations

from typing import Any

Row = tuple[str, dict[str, Any], dict[str, Any]]

R, V, M, S = "vqverify.reference", "vector_quantize_pytorch", "vqverify.mutants.rotation", "tests.identify.strangers"
SMALL = {"dim": 8, "codebook_size": 16}
STACK = {**SMALL, "num_quantizers": 3}

ROTATION = {"estimator": "rotation", "mistake": None, "metric": "euclidean", "stochastic": "none", "structure": "plain"}
STE = {**ROTATION, "estimator": "straight-through"}
OURS = {"learning": ["ema"], "decay": 0.99, "smoothing": 0.0, "smoothing_stored": False, "commitment_weight": 0.25}
THEIRS = {"learning": ["ema"], "decay": 0.8, "smoothing": 1e-5, "smoothing_stored": False, "commitment_weight": 1.0}
LEARNT = {"learning": ["gradient"], "decay": None, "commitment_weight": 0.25, "codebook_weight": 1.0}

REFERENCE: list[Row] = [
    (f"{R}:VectorQuantizer", SMALL, {**ROTATION, **OURS}),
    (f"{R}:VectorQuantizer", {**SMALL, "estimator": "straight-through"}, {**STE, **OURS}),
    (
        f"{R}:VectorQuantizer",
        {**SMALL, "metric": "cosine"},
        {**ROTATION, "metric": "cosine", "commitment_weight": 0.25},
    ),
    (f"{R}:VectorQuantizer", {**SMALL, "learning": "gradient"}, {**ROTATION, **LEARNT}),
    (f"{R}:ResidualVQ", STACK, {**STE, **OURS, "structure": "residual", "num_quantizers": 3}),
    (f"{R}:GroupedVQ", SMALL, {**ROTATION, **OURS, "structure": "grouped", "heads": 2}),
    (f"{R}:GroupedVQ", {**SMALL, "learning": "gradient"}, {**ROTATION, **LEARNT, "structure": "grouped"}),
    (
        f"{R}:GroupedVQ",
        {**SMALL, "temperature": 0.5, "smoothing": 1e-3},  # draws leave few codes unused, to see it by
        {"smoothing": 1e-3, "smoothing_kind": "laplace", "smoothing_stored": False, "structure": "grouped"},
    ),
    (f"{R}:ProjectedCosineVQ", {**SMALL, "codebook_dim": 4}, {**ROTATION, "metric": "cosine", "decay": 0.99}),
    (f"{R}:SimVQ", SMALL, {**ROTATION, "learning": ["none"], "commitment_weight": 0.25, "codebook_weight": None}),
    (f"{R}:FSQ", {"levels": [5, 5, 5]}, {**STE, "metric": "grid", "structure": "scalar", "fsq_levels": [5, 5, 5]}),
    (f"{R}:LFQ", {"dim": 5}, {**STE, "metric": "sign", "structure": "sign", "codebook_size": 32}),
    (f"{R}:GumbelVQ", SMALL, {"estimator": "gumbel", "learning": ["decoder"], "temperature": 1.0}),
    (f"{R}:SQVAE", SMALL, {"estimator": "gumbel", "metric": "euclidean", "temperature": 1.0}),
]
LIBRARY: list[Row] = [
    (f"{V}:VectorQuantize", SMALL, {**ROTATION, **THEIRS}),
    (f"{V}:VectorQuantize", {**SMALL, "rotation_trick": False}, {**STE, **THEIRS}),
    (f"{V}:VectorQuantize", {**SMALL, "use_cosine_sim": True}, {**ROTATION, "metric": "cosine", "decay": 0.8}),
    (f"{V}:VectorQuantize", {**SMALL, "codebook_dim": 4}, {**ROTATION, **THEIRS}),
    (
        f"{V}:VectorQuantize",
        {**SMALL, "heads": 2, "separate_codebook_per_head": True},
        {**ROTATION, **THEIRS, "structure": "heads", "heads": 2},
    ),
    (
        f"{V}:VectorQuantize",
        {**SMALL, "learnable_codebook": True, "ema_update": False},
        {**ROTATION, **LEARNT, "commitment_weight": 1.0},
    ),
    (f"{V}:VectorQuantize", {**SMALL, "threshold_ema_dead_code": 2}, {"replacement": "batch", "smoothing": None}),
    (f"{V}:ResidualVQ", STACK, {**ROTATION, **THEIRS, "structure": "residual", "num_quantizers": 3}),
    (
        f"{V}:GroupedResidualVQ",
        {**SMALL, "num_quantizers": 2, "groups": 2},
        {**ROTATION, "structure": "grouped residual", "num_quantizers": 2, "heads": 2},
    ),
    (f"{V}:SimVQ", SMALL, {**ROTATION, "learning": ["none"], "commitment_weight": 0.25}),
]
EMA = {**STE, "learning": ["ema"], "decay": 0.99, "smoothing": 1e-5, "smoothing_kind": "laplace"}
STRANGERS: list[Row] = [
    (
        f"{S}:ZalandoEMA",
        {"num_embeddings": 16, "embedding_dim": 8},
        {**EMA, "smoothing_stored": True, "commitment_weight": 0.25},
    ),
    (
        f"{S}:Taming2",
        {"n_e": 16, "e_dim": 8},
        {**STE, "commitment_weight": 1.0, "codebook_weight": 0.25, "loss_convention": "legacy"},
    ),
    (f"{S}:Taming2", {"n_e": 16, "e_dim": 8, "legacy": False}, {**STE, **LEARNT, "loss_convention": "V_b"}),
    (
        f"{S}:DAC",
        {"input_dim": 12, "codebook_size": 16, "codebook_dim": 4},
        {**STE, "metric": "cosine", "commitment_weight": 1.0, "codebook_weight": 1.0},
    ),
    (f"{S}:DACs", {}, {**STE, "metric": "cosine", "structure": "projected residual", "num_quantizers": 3}),
    (f"{S}:DACs", {"split": True}, {**STE, "metric": "cosine", "structure": "sum", "num_quantizers": 3}),
    (f"{S}:Spherical", {}, {**STE, "metric": "sign", "structure": "sign", "learning": ["none"]}),
    ("tests.identify.unusual:Lines", {}, {**STE, "metric": "grid", "structure": "learnt scalar"}),
    (f"{S}:EncodecLike", SMALL, {**EMA, "smoothing_stored": False, "commitment_weight": 1.0}),
    (f"{S}:ViT", {"embed_dim": 8, "n_embed": 16}, {**STE, "metric": "cosine", "learning": ["gradient"]}),
    (f"{S}:Rosinality", {"dim": 8, "n_embed": 16}, {**EMA, "smoothing_stored": False, "commitment_weight": 1.0}),
    (f"{S}:RVQ", STACK, {**STE, **LEARNT, "structure": "residual", "num_quantizers": 3}),
    (
        f"{S}:Gumbel",
        {"num_hiddens": 8, "embedding_dim": 8, "n_embed": 16},
        {"estimator": "gumbel", "learning": ["decoder"], "temperature": 1.0, "stochastic": "train"},
    ),
]
MISTAKES = {
    "Transposed": "transposed",
    "Unscaled": "scale lost",
    "ForwardUnscaled": "scale lost",
    "Reflection": "reflection",
    "Differentiated": "rotation differentiated",
    "InvertedScale": "scale inverted",
    "Unguarded": None,  # wrong at 0 only
    "OnePlusCosine": None,  # wrong near θ = π only
}
MUTANTS: list[Row] = [
    (f"{M}:{name}", {"dim": 4, "codebook_size": 8}, {"estimator": "rotation", "mistake": mistake})
    for name, mistake in MISTAKES.items()
]
MUTANTS.append((f"{M}:Silent", {"dim": 4, "codebook_size": 8}, {"estimator": "straight-through", "mistake": None}))
