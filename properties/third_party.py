"""Quantizers of libraries by a short name, for third_party.toml: `third_party.py:dac.VectorQuantize`.

Two things stand between a class and `vqverify check`. The `__init__` of many packages imports audio readers or
training frameworks that their quantizers do not need: `Plain` imports the module that holds the quantizer and leaves
those `__init__` out. And some libraries build a layer from a configuration object: `Configured` makes that from
keyword arguments. Neither says how a layer is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Plain:
    """The classes of a module, imported without running the `__init__` of the packages around it."""

    module: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        parents = self.module.split(".")[:-1]
        for depth in range(1, len(parents) + 1):
            package = ".".join(parents[:depth])
            if package not in sys.modules:
                spec = importlib.util.find_spec(package)
                if spec is None:
                    raise ModuleNotFoundError(f"No module named {package!r}", name=package)
                bare = sys.modules[package] = types.ModuleType(package)
                bare.__path__, bare.__spec__ = list(spec.submodule_search_locations or ()), spec
        return getattr(importlib.import_module(self.module), name)


@dataclass(frozen=True)
class Configured:
    """The classes of a module that take one configuration object; their factories take its fields."""

    module: str
    configuration: str
    drawn: tuple[str, ...] = ()  # parameters that the layer's own constructor leaves as memory that nobody wrote

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        cls = getattr(importlib.import_module(self.module), name)
        place, _, config = self.configuration.rpartition(":")
        make = getattr(importlib.import_module(place), config)

        def factory(**kwargs: Any) -> nn.Module:
            return _drawn(cls(make(**kwargs)), self.drawn)

        factory.__name__, factory.__module__ = name, cls.__module__
        return factory


def _drawn(layer: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The layer with some parameters, and tables of zeros, drawn at random: the model around it would fill them."""
    for name in names:
        nn.init.uniform_(layer.get_parameter(name))
    for buffer in layer.buffers():
        if buffer.ndim > 1 and buffer.is_floating_point() and not buffer.any():
            nn.init.normal_(buffer)
    return layer


def _transformers(model: str, config: str, *drawn: str) -> Configured:
    place = f"transformers.models.{model}"
    return Configured(f"{place}.modeling_{model}", f"{place}.configuration_{model}:{config}", drawn)


dac = Plain("dac.nn.quantize")
diveq = Plain("diveq.diveq")
dualcodec = Plain("dualcodec.model_codec.dac_quantize")
encodec = Plain("encodec.quantization.vq")
encodec_core = Plain("encodec.quantization.core_vq")
moshi = Plain("moshi.quantization.vq")
nicheverse = Plain("nicheverse.models.quantizers")
semantic_id = Plain("semantic_id.algorithms.rq_vae_modules")
speechbrain = Plain("speechbrain.lobes.models.discrete.dac")
speechbrain_bsq = Plain("speechbrain.lobes.models.bsq")
speechbrain_nnet = Plain("speechbrain.nnet.quantisers")
speechtokenizer = Plain("speechtokenizer.quantization.vq")
vecman = Plain("vecman.models.vqvae")
vitvqgan = Plain("vitvqgan.modules.stage1.quantizers")

chameleon = _transformers("chameleon", "ChameleonVQVAEConfig")
hf_dac = _transformers("dac", "DacConfig")
hf_encodec = _transformers("encodec", "EncodecConfig")
janus = _transformers("janus", "JanusVQVAEConfig")
mimi = _transformers("mimi", "MimiConfig")
wav2vec2 = _transformers("wav2vec2", "Wav2Vec2Config", "codevectors")
xcodec2 = _transformers("xcodec2", "Xcodec2Config")


def pythae_quantizer(num_embeddings: int, embedding_dim: int, **options: Any) -> nn.Module:
    """The quantizer that pythae's VQVAE builds; `use_ema` chooses between its two."""
    utils = Plain("pythae.models.vq_vae.vq_vae_utils")
    config = Plain("pythae.models.vq_vae.vq_vae_config").VQVAEConfig(num_embeddings=num_embeddings, **options)
    config.embedding_dim = embedding_dim  # the model sets it when it knows what its encoder returns
    return (utils.QuantizerEMA if config.use_ema else utils.Quantizer)(config)


def monai_vector_quantizer(
    num_embeddings: int, embedding_dim: int, decay: float = 0.99, commitment_cost: float = 0.25, spatial_dims: int = 2
) -> nn.Module:
    """MONAI's VectorQuantizer around its EMAQuantizer."""
    module = importlib.import_module("monai.networks.layers.vector_quantizer")
    return module.VectorQuantizer(
        module.EMAQuantizer(
            spatial_dims, num_embeddings, embedding_dim, decay=decay, commitment_cost=commitment_cost, ddp_sync=False
        )
    )


def generative_vector_quantizer(
    num_embeddings: int, embedding_dim: int, decay: float = 0.99, commitment_cost: float = 0.25, spatial_dims: int = 2
) -> nn.Module:
    """VectorQuantizer of monai-generative around its EMAQuantizer."""
    module = importlib.import_module("generative.networks.layers.vector_quantizer")
    return module.VectorQuantizer(
        module.EMAQuantizer(
            spatial_dims, num_embeddings, embedding_dim, decay=decay, commitment_cost=commitment_cost, ddp_sync=False
        )
    )
