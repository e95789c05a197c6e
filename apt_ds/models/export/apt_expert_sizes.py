"""Sizes by layer for mixtures of experts whose attention is LLaMA's. The modelling files beside it import it.

Needs torch and transformers only. It is copied beside the exported weights, as the modelling files are.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from .apt_layer_sizes import resize_attention


def resize_mixtures(
    layers: Iterable[Any],
    config: Any,
    neurons_field: str,
    router: Callable[[Any], nn.Module],
    experts: Callable[[Any], nn.Module],
) -> None:
    """Give each decoder layer an attention, a router and experts of its own sizes.

    Args:
        layers: decoder layers with `self_attn` and `mlp`.
        config: the configuration, with the lists `layer_key_value_heads`, `layer_experts` and
            `layer_intermediate_sizes`.
        neurons_field: the field with the number of neurons of an expert.
        router: makes a router from a configuration.
        experts: makes the experts from a configuration.
    """
    queries = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
    lists = (config.layer_key_value_heads, config.layer_experts, config.layer_intermediate_sizes)
    sizes = zip(*(numbers or [] for numbers in lists), strict=True)
    for layer, (groups, count, neurons) in zip(layers, sizes, strict=True):
        resize_attention(layer.self_attn, queries * groups, groups)
        own = copy.copy(config)
        own.num_local_experts = count
        setattr(own, neurons_field, neurons)
        layer.mlp.gate, layer.mlp.experts = router(own), experts(own)
        layer.mlp.experts.config = config
