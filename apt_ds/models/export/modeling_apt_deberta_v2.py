"""DeBERTa-v2 and v3 whose layers keep different numbers of heads and neurons. Needs transformers only.

The configuration adds two lists, one entry per layer: `layer_heads` and `layer_intermediate_sizes`.
"""

from typing import Any

from torch import nn
from transformers import (
    AutoModel,
    DebertaV2Config,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
    PreTrainedModel,
)

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_layer_sizes import PerLayerConfig


class AptDebertaV2Config(PerLayerConfig, DebertaV2Config):
    """DebertaV2Config plus the sizes of each layer. The scalar fields are the largest.

    attention_head_size: dimensions of a head, which stock layers read too. project_embeddings: whether a linear layer
    follows the embeddings. Stock models have one if the sizes differ.
    """

    model_type = "apt_deberta-v2"
    attention_head_size: int = 64
    layer_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None
    project_embeddings: bool = False

    def layer_sizes(self) -> list[dict[str, int]]:
        """The stock fields of each layer. Empty if the lists are."""
        sizes = zip(self.layer_heads or [], self.layer_intermediate_sizes or [], strict=True)
        return [{"num_attention_heads": heads, "intermediate_size": neurons} for heads, neurons in sizes]


def resize(deberta: Any, config: AptDebertaV2Config) -> None:
    """Replace the linear layers of each layer by ones of its own sizes."""
    hidden, size = config.hidden_size, config.attention_head_size
    if config.project_embeddings:
        deberta.embeddings.embed_proj = nn.Linear(deberta.embeddings.embedding_size, hidden, bias=False)
    sizes = zip(config.layer_heads or [], config.layer_intermediate_sizes or [], strict=True)
    for layer, (heads, neurons) in zip(deberta.encoder.layer, sizes, strict=True):
        attention, width = layer.attention.self, heads * size
        attention.num_attention_heads, attention.all_head_size = heads, width
        for name in ("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj"):
            if hasattr(attention, name):
                setattr(attention, name, nn.Linear(hidden, width))
        layer.attention.output.dense = nn.Linear(width, hidden)
        layer.intermediate.dense = nn.Linear(hidden, neurons)
        layer.output.dense = nn.Linear(neurons, hidden)


class LayersOfOwnSizes(PreTrainedModel):
    """Makes a stock model, then its layers again."""

    def __init__(self, config: AptDebertaV2Config) -> None:
        # a stock layer refuses a hidden_size that the heads do not divide
        heads, config.num_attention_heads = config.num_attention_heads, 1
        super().__init__(config)
        config.num_attention_heads = heads
        resize(self.base_model, config)
        self.post_init()


class AptDebertaV2Model(LayersOfOwnSizes, DebertaV2Model):
    """The stock base model with layers of their own sizes."""

    config_class = AptDebertaV2Config


class AptDebertaV2ForSequenceClassification(LayersOfOwnSizes, DebertaV2ForSequenceClassification):
    """Stock DeBERTa with layers of their own sizes."""

    config_class = AptDebertaV2Config


class AptDebertaV2ForQuestionAnswering(LayersOfOwnSizes, DebertaV2ForQuestionAnswering):
    """Stock DeBERTa with layers of their own sizes."""

    config_class = AptDebertaV2Config


AutoModel.register(AptDebertaV2Config, AptDebertaV2Model, exist_ok=True)
