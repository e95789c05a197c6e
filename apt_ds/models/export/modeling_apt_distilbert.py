"""DistilBERT whose layers keep different numbers of heads and neurons. Needs transformers only.

The configuration adds `head_dim` and two lists, one entry per layer: `layer_heads` and `layer_hidden_dims`.
"""

from typing import Any

from torch import nn
from transformers import (
    AutoModel,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedModel,
)

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_layer_sizes import PerLayerConfig


class AptDistilBertConfig(PerLayerConfig, DistilBertConfig):
    """DistilBertConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_distilbert"
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_hidden_dims: list[int] | None = None

    def layer_sizes(self) -> list[dict[str, int]]:
        """The stock fields of each layer. Empty if the lists are."""
        sizes = zip(self.layer_heads or [], self.layer_hidden_dims or [], strict=True)
        return [{"n_heads": heads, "hidden_dim": neurons} for heads, neurons in sizes]


def resize(distilbert: Any, config: AptDistilBertConfig) -> None:
    """Replace the linear layers of each layer by ones of its own sizes."""
    dim, size = config.dim, config.head_dim or 1
    sizes = zip(config.layer_heads or [], config.layer_hidden_dims or [], strict=True)
    for layer, (heads, neurons) in zip(distilbert.transformer.layer, sizes, strict=True):
        attention, width = layer.attention, heads * size
        attention.n_heads, attention.attention_head_size, attention.scaling = heads, size, size**-0.5
        attention.dim = width  # of queries, as transformers 4 reads it
        attention.q_lin, attention.k_lin, attention.v_lin = (nn.Linear(dim, width) for _ in range(3))
        attention.out_lin = nn.Linear(width, dim)
        layer.ffn.lin1, layer.ffn.lin2 = nn.Linear(dim, neurons), nn.Linear(neurons, dim)


class LayersOfOwnSizes(PreTrainedModel):
    """Makes a stock model, then its layers again."""

    def __init__(self, config: AptDistilBertConfig) -> None:
        # a stock layer refuses a dim that the heads do not divide
        heads, config.n_heads = config.n_heads, 1
        super().__init__(config)
        config.n_heads = heads
        resize(self.base_model, config)
        self.post_init()


class AptDistilBertModel(LayersOfOwnSizes, DistilBertModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptDistilBertConfig


class AptDistilBertForSequenceClassification(LayersOfOwnSizes, DistilBertForSequenceClassification):
    """Stock DistilBERT with layers of their own sizes."""

    config_class = AptDistilBertConfig


class AptDistilBertForQuestionAnswering(LayersOfOwnSizes, DistilBertForQuestionAnswering):
    """Stock DistilBERT with layers of their own sizes."""

    config_class = AptDistilBertConfig


AutoModel.register(AptDistilBertConfig, AptDistilBertModel, exist_ok=True)
