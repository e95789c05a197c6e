"""Qwen2 and Qwen2.5: LLaMA with biases on query, key and value, and a sliding window in some layers.

vLLM's Qwen2 computes the size of a head as hidden size / heads. A model whose heads or hidden dimensions were cut is
written as a family of which vLLM reads `head_dim`: LLaMA, or Granite where `LlamaConfig` refuses the sizes. Both have a
bias on the output projection too. It is zero. A sliding window keeps the model a Qwen2, because they have none.
"""

from __future__ import annotations

from torch import nn
from transformers import GraniteConfig, LlamaConfig, PretrainedConfig

from apt_ds.models.architectures import decoder
from apt_ds.models.architectures.llama import is_llama_size
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import modeling_apt_qwen2
from apt_ds.models.export.form import Written

# fields that LLaMA and Granite do not have
OWN_FIELDS = ("model_type", "architectures", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types")


def has_windows(config: PretrainedConfig) -> bool:
    """Whether a layer has a sliding window."""
    return "sliding_attention" in (config.layer_types or ())


def derives_head_dim(config: PretrainedConfig) -> bool:
    """Whether hidden size / heads is the size of a head, as vLLM's Qwen2 computes it."""
    return bool(config.hidden_size // config.num_attention_heads == config.head_dim)


def with_output_bias(config: PretrainedConfig) -> PretrainedConfig:
    """The same model as a LLaMA with biases, or as a Granite whose factors change nothing."""
    values = {name: value for name, value in config.to_dict().items() if name not in OWN_FIELDS}
    values["attention_bias"] = True
    if is_llama_size(config.hidden_size, config.num_attention_heads):
        return LlamaConfig(**values)
    # the other factors of a Granite are 1
    return GraniteConfig(**values, attention_multiplier=config.head_dim**-0.5)


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write equal layers in a stock configuration that vLLM loads. Others get sizes by layer.

    stock: as in `Architecture.export`.
    """
    form = decoder.export(model, config, anatomy, modeling_apt_qwen2, modeling_apt_qwen2.AptQwen2Config, stock)
    if form.modules or has_windows(config) or derives_head_dim(config):
        return form
    zeros = (config.hidden_size,), 0.0
    added = {f"{site.consumer}.bias": zeros for site in anatomy.sites if site.kind == "head"}
    return Written(with_output_bias(config), added=added)


ARCHITECTURE = decoder.architecture(
    "qwen2",
    "Qwen2",
    modeling_apt_qwen2,
    title="Qwen2, Qwen2.5",
    export=export,
    uniform_form="Qwen2; LLaMA or Granite with biases where heads or hidden dimensions were cut, for vLLM",
)
