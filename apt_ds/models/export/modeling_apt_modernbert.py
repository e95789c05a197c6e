"""ModernBERT whose layers keep different numbers of heads and neurons. Needs transformers only.

The configuration adds `head_dim` and two lists, one entry per layer: `layer_heads` and `layer_intermediate_sizes`.
"""

from typing import Any

from torch import nn
from transformers import (
    AutoModel,
    ModernBertConfig,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertModel,
    PreTrainedModel,
)

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_layer_sizes import PerLayerConfig


class AptModernBertConfig(PerLayerConfig, ModernBertConfig):
    """ModernBertConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_modernbert"
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None

    def layer_sizes(self) -> list[dict[str, int]]:
        """The stock fields of each layer. Empty if the lists are."""
        sizes = zip(self.layer_heads or [], self.layer_intermediate_sizes or [], strict=True)
        return [{"num_attention_heads": heads, "intermediate_size": neurons} for heads, neurons in sizes]


def resize(layers: Any, config: AptModernBertConfig) -> None:
    """Replace the linear layers of each layer by ones of its own sizes."""
    hidden, size, bias, mlp_bias = config.hidden_size, config.head_dim or 1, config.attention_bias, config.mlp_bias
    sizes = zip(config.layer_heads or [], config.layer_intermediate_sizes or [], strict=True)
    for layer, (heads, neurons) in zip(layers, sizes, strict=True):
        # transformers 4 reads the last two
        layer.attn.head_dim, layer.attn.num_heads, layer.attn.all_head_size = size, heads, heads * size
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
        resize(self.base_model.layers, config)
        self.post_init()


class AptModernBertModel(LayersOfOwnSizes, ModernBertModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptModernBertConfig


class AptModernBertForSequenceClassification(LayersOfOwnSizes, ModernBertForSequenceClassification):
    """Stock ModernBERT with layers of their own sizes."""

    config_class = AptModernBertConfig


class AptModernBertForQuestionAnswering(LayersOfOwnSizes, ModernBertForQuestionAnswering):
    """Stock ModernBERT with layers of their own sizes."""

    config_class = AptModernBertConfig


AutoModel.register(AptModernBertConfig, AptModernBertModel, exist_ok=True)
