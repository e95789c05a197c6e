"""LLaMA: pre-norm, gated feed-forward, multi-head or grouped-query attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn
from transformers import MistralConfig, PretrainedConfig

from apt_ds.config.tasks import INSTRUCTIONS, LANGUAGE_MODEL
from apt_ds.models.architectures import decoder
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import modeling_apt_llama
from apt_ds.models.export.form import Written
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable

# kind of block: the field that gives its sublayer biases, and the projections that get one beside the consumer
BIASES = {"head": ("attention_bias", ("q_proj", "k_proj", "v_proj")), "neuron": ("mlp_bias", ("gate_proj", "up_proj"))}


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a decoder whose export writes new biases (`give_biases`)."""
    return replace(decoder.blocks(config, task), new_biases=True)


def is_llama_size(hidden: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Whether LlamaConfig accepts a hidden size with a number of query heads. Its head_dim does not matter."""
    return hidden % heads == 0


def has_biases(config: PretrainedConfig) -> bool:
    """Whether a model is a LLaMA with biases, which a Mistral cannot have."""
    return any(getattr(config, name, False) for name in ("attention_bias", "mlp_bias"))


def writable_sizes(config: PretrainedConfig) -> Writable:
    """The uniform sizes that a run may choose for a model with this configuration.

    MistralConfig accepts the sizes that LlamaConfig refuses, but has no biases. Only a LLaMA with biases is limited.
    """
    if not has_biases(config):
        return EVERY_SIZE
    queries = config.num_attention_heads // config.num_key_value_heads

    def accepts(heads: np.ndarray, neurons: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return is_llama_size(hidden, heads * queries) & (neurons > 0)

    return Writable(accepts, "LLaMA with attention_bias or mlp_bias needs a hidden size divisible by the query heads")


def as_mistral(config: PretrainedConfig) -> MistralConfig:
    """The same model as a Mistral. Both compute the same, without biases and without a sliding window."""
    unknown = {"model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp", "sliding_window"}
    values = {key: value for key, value in config.to_dict().items() if key not in unknown}
    return MistralConfig(**values, sliding_window=None)


def give_biases(
    model: nn.Module, config: PretrainedConfig, anatomy: Anatomy
) -> dict[str, tuple[tuple[int, ...], float]]:
    """State the biases that a cut has given to consumers, in the configuration. See `pruning/bias_compensation.py`.

    LLaMA has biases in all projections of a sublayer or in none.

    Returns:
        The zero biases that the model lacks, as `Written.added`.
    """
    modules = dict(model.named_modules())
    added: dict[str, tuple[tuple[int, ...], float]] = {}
    for kind, (field, others) in BIASES.items():
        sites = [(site, n) for site, n in zip(anatomy.sites, anatomy.sizes.counts, strict=True) if site.kind == kind]
        linear = [module for site, _ in sites if isinstance(module := modules.get(site.consumer), nn.Linear)]
        if getattr(config, field) or all(module.bias is None for module in linear):
            continue
        setattr(config, field, True)
        for site, count in sites:
            own = {"q_proj": site.unit, "k_proj": config.head_dim, "v_proj": config.head_dim}
            parent = site.consumer.rpartition(".")[0]
            if count:
                added |= {f"{parent}.{name}.bias": ((count * own.get(name, 1),), 0.0) for name in others}
            if getattr(modules[site.consumer], "bias", None) is None:
                added[f"{site.consumer}.bias"] = ((anatomy.sizes.hidden,), 0.0)
    return added


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write equal layers as a LLaMA, or as a Mistral where LlamaConfig refuses the sizes. Others get sizes by layer.

    `head_dim` is always explicit. stock: as in `Architecture.export`.
    """
    decoder.resize_config(config, anatomy)
    added = give_biases(model, config, anatomy)
    if stock and decoder.equal_layers(anatomy):
        if is_llama_size(config.hidden_size, config.num_attention_heads):
            return Written(config, added=added)
        if not has_biases(config):
            return Written(as_mistral(config))
    form = decoder.adaptive_form(config, anatomy, modeling_apt_llama, modeling_apt_llama.AptLlamaConfig)
    return replace(form, added=added)


ARCHITECTURE = Architecture(
    model_type="llama",
    tasks={INSTRUCTIONS: LANGUAGE_MODEL},
    stock_classes={LANGUAGE_MODEL: "LlamaForCausalLM"},
    blocks=blocks,
    export=export,
    modeling=modeling_apt_llama,
    writable=writable_sizes,
    title="LLaMA 1 to 3.3, SmolLM2",
    uniform_form="LLaMA, or Mistral where `LlamaConfig` refuses the sizes",
)
