"""Sizes by layer for mixtures of experts whose attention is LLaMA's. The modelling files beside it import it.

Needs torch and transformers only. It is copied beside the exported weights, as the modelling files are.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import transformers
from torch import nn

from .apt_layer_sizes import PerLayerConfig, resize_attention

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError("a mixture of experts with sizes by layer needs transformers 5 or later")


class ExpertSizes(PerLayerConfig):
    """The fields that a configuration with sizes by layer adds to a stock one. Put it before the stock class."""

    layer_key_value_heads: list[int] | None = None
    layer_experts: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None
    neurons_field = "intermediate_size"  # the field with the number of neurons of an expert

    def layer_sizes(self) -> list[dict[str, int]]:
        """The stock fields of each layer. Empty if the lists are."""
        config: Any = self
        queries = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
        lists = (self.layer_key_value_heads, self.layer_experts, self.layer_intermediate_sizes)
        sizes = zip(*(numbers or [] for numbers in lists), strict=True)
        return [
            {
                "num_attention_heads": groups * queries,
                "num_key_value_heads": groups,
                "num_local_experts": experts,
                self.neurons_field: neurons,
            }
            for groups, experts, neurons in sizes
        ]


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
