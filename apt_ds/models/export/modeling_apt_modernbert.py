"""ModernBERT whose layers keep different numbers of heads and neurons. Needs transformers only.

The configuration adds `head_dim` and two lists, one entry per layer: `layer_heads` and `layer_intermediate_sizes`.
"""

from typing import Any

from torch import nn
from transformers import (
    ModernBertConfig,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    PreTrainedModel,
)


class AptModernBertConfig(ModernBertConfig):
    """ModernBertConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_modernbert"
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


def resize(layers: Any, config: AptModernBertConfig) -> None:
    """Replace the linear layers of each layer by ones of its own sizes."""
    hidden, size, bias, mlp_bias = config.hidden_size, config.head_dim or 1, config.attention_bias, config.mlp_bias
    sizes = zip(config.layer_heads or [], config.layer_intermediate_sizes or [], strict=True)
    for layer, (heads, neurons) in zip(layers, sizes, strict=True):
        layer.attn.head_dim = size
        layer.attn.Wqkv = nn.Linear(hidden, 3 * heads * size, bias=bias)
        layer.attn.Wo = nn.Linear(heads * size, hidden, bias=bias)
        layer.mlp.Wi = nn.Linear(hidden, 2 * neurons, bias=mlp_bias)
        layer.mlp.Wo = nn.Linear(neurons, hidden, bias=mlp_bias)


class LayersOfOwnSizes(PreTrainedModel):
    """Makes a stock model, then its layers again."""

    def __init__(self, config: AptModernBertConfig) -> None:
        # a stock layer refuses a hidden_size that the heads do not divide
        heads, config.num_attention_heads = config.num_attention_heads, 1
        super().__init__(config)
        config.num_attention_heads = heads
        resize(self.model.layers, config)
        self.post_init()


class AptModernBertForSequenceClassification(LayersOfOwnSizes, ModernBertForSequenceClassification):
    """Stock ModernBERT with layers of their own sizes."""

    config_class = AptModernBertConfig


class AptModernBertForQuestionAnswering(LayersOfOwnSizes, ModernBertForQuestionAnswering):
    """Stock ModernBERT with layers of their own sizes."""

    config_class = AptModernBertConfig
