"""BERT, RoBERTa and ELECTRA whose layers keep different numbers of heads and neurons. Needs transformers only.

The configurations add `head_dim` and two lists, one entry per layer: `layer_heads` and `layer_intermediate_sizes`.
"""

from typing import Any

from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraModel,
    PretrainedConfig,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaModel,
)

from .apt_emptied_sublayers import Bias, EmptiedHeads, EmptiedNeurons
from .apt_layer_sizes import PerLayerConfig


class HeadSizes(PerLayerConfig):
    """The fields that all configurations here add."""

    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None

    def layer_sizes(self) -> list[dict[str, int]]:
        """The stock fields of each layer. Empty if the lists are."""
        sizes = zip(self.layer_heads or [], self.layer_intermediate_sizes or [], strict=True)
        return [{"num_attention_heads": heads, "intermediate_size": neurons} for heads, neurons in sizes]


class AptBertConfig(HeadSizes, BertConfig):
    """BertConfig plus the sizes of each layer. The scalar fields are the largest.

    embedding_size: equal to hidden_size. Stock layers accept a hidden_size that the heads do not divide if it exists.
    """

    model_type = "apt_bert"
    embedding_size: int | None = None
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


class AptRobertaConfig(HeadSizes, RobertaConfig):
    """RobertaConfig plus the sizes of each layer, as AptBertConfig."""

    model_type = "apt_roberta"
    embedding_size: int | None = None
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


class AptElectraConfig(HeadSizes, ElectraConfig):
    """ElectraConfig plus the sizes of each layer. The scalar fields are the largest.

    project_embeddings: whether a linear layer follows the embeddings. Stock models have one if the sizes differ.
    """

    model_type = "apt_electra"
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None
    project_embeddings: bool = False


def resize(encoder: Any, config: PretrainedConfig) -> None:
    """Replace the linear layers of each layer by ones of its own sizes."""
    hidden, size = config.hidden_size, config.head_dim
    sizes = zip(config.layer_heads, config.layer_intermediate_sizes, strict=True)
    for layer, (heads, neurons) in zip(encoder.layer, sizes, strict=True):
        attention, width = layer.attention.self, heads * size
        attention.num_attention_heads, attention.attention_head_size, attention.all_head_size = heads, size, width
        attention.scaling = size**-0.5
        if heads:
            attention.query, attention.key, attention.value = (nn.Linear(hidden, width) for _ in range(3))
            layer.attention.output.dense = nn.Linear(width, hidden)
        else:
            layer.attention.self, layer.attention.output.dense = EmptiedHeads(attention), Bias.of_width(hidden)
        if neurons:
            layer.intermediate.dense = nn.Linear(hidden, neurons)
            layer.output.dense = nn.Linear(neurons, hidden)
        else:
            layer.intermediate, layer.output.dense = EmptiedNeurons(layer.intermediate), Bias.of_width(hidden)


class AptBertModel(BertModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptBertConfig

    def __init__(self, config: AptBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        resize(self.encoder, config)
        self.post_init()


class AptBertForSequenceClassification(BertForSequenceClassification):
    """Stock BERT with layers of their own sizes."""

    config_class = AptBertConfig

    def __init__(self, config: AptBertConfig) -> None:
        super().__init__(config)
        resize(self.bert.encoder, config)
        self.post_init()


class AptBertForQuestionAnswering(BertForQuestionAnswering):
    """Stock BERT with layers of their own sizes."""

    config_class = AptBertConfig

    def __init__(self, config: AptBertConfig) -> None:
        super().__init__(config)
        resize(self.bert.encoder, config)
        self.post_init()


class AptRobertaModel(RobertaModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptRobertaConfig

    def __init__(self, config: AptRobertaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        resize(self.encoder, config)
        self.post_init()


class AptRobertaForSequenceClassification(RobertaForSequenceClassification):
    """Stock RoBERTa with layers of their own sizes."""

    config_class = AptRobertaConfig

    def __init__(self, config: AptRobertaConfig) -> None:
        super().__init__(config)
        resize(self.roberta.encoder, config)
        self.post_init()


class AptRobertaForQuestionAnswering(RobertaForQuestionAnswering):
    """Stock RoBERTa with layers of their own sizes."""

    config_class = AptRobertaConfig

    def __init__(self, config: AptRobertaConfig) -> None:
        super().__init__(config)
        resize(self.roberta.encoder, config)
        self.post_init()


def resize_electra(electra: Any, config: AptElectraConfig) -> None:
    """Give an ELECTRA layers of their own sizes, and the linear layer after its embeddings."""
    if config.project_embeddings:
        electra.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
    resize(electra.encoder, config)


class AptElectraModel(ElectraModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptElectraConfig

    def __init__(self, config: AptElectraConfig) -> None:
        super().__init__(config)
        resize_electra(self, config)
        self.post_init()


class AptElectraForSequenceClassification(ElectraForSequenceClassification):
    """Stock ELECTRA with layers of their own sizes."""

    config_class = AptElectraConfig

    def __init__(self, config: AptElectraConfig) -> None:
        super().__init__(config)
        resize_electra(self.electra, config)
        self.post_init()


class AptElectraForQuestionAnswering(ElectraForQuestionAnswering):
    """Stock ELECTRA with layers of their own sizes."""

    config_class = AptElectraConfig

    def __init__(self, config: AptElectraConfig) -> None:
        super().__init__(config)
        resize_electra(self.electra, config)
        self.post_init()


AutoModel.register(AptBertConfig, AptBertModel, exist_ok=True)
AutoModel.register(AptRobertaConfig, AptRobertaModel, exist_ok=True)
AutoModel.register(AptElectraConfig, AptElectraModel, exist_ok=True)
