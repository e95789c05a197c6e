"""Qwen3-MoE whose layers keep different numbers of heads, experts and neurons. Needs transformers and what it requires.

The configuration adds three lists, one entry per layer: `layer_key_value_heads`, `layer_experts` and
`layer_intermediate_sizes`, the neurons of each expert.
"""

from typing import Any

from transformers import (
    AutoModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3MoeForSequenceClassification,
    Qwen3MoeModel,
)
from transformers.models.qwen3_moe import modeling_qwen3_moe as stock

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_expert_sizes import ExpertSizes, resize_mixtures
from .apt_layer_sizes import checked_config


@checked_config
class AptQwen3MoeConfig(ExpertSizes, Qwen3MoeConfig):
    """Qwen3MoeConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_qwen3_moe"
    neurons_field = "moe_intermediate_size"
    head_dim: int | None = None
    layer_key_value_heads: list[int] | None = None
    layer_experts: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


def resize(layers: Any, config: AptQwen3MoeConfig) -> None:
    """Replace the attention and the experts of each layer by ones of its own sizes."""
    resize_mixtures(layers, config, config.neurons_field, stock.Qwen3MoeTopKRouter, stock.Qwen3MoeExperts)


class AptQwen3MoeModel(Qwen3MoeModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptQwen3MoeConfig

    def __init__(self, config: AptQwen3MoeConfig) -> None:
        super().__init__(config)
        resize(self.layers, config)
        self.post_init()


AutoModel.register(
    AptQwen3MoeConfig, AptQwen3MoeModel, exist_ok=True
)  # stock classes with another head make their base so


class AptQwen3MoeForCausalLM(Qwen3MoeForCausalLM):
    """The stock language model with layers of their own sizes."""

    config_class = AptQwen3MoeConfig

    def __init__(self, config: AptQwen3MoeConfig) -> None:
        super().__init__(config)
        resize(self.model.layers, config)
        self.post_init()


class AptQwen3MoeForSequenceClassification(Qwen3MoeForSequenceClassification):
    """The stock classifier. Its base has layers of their own sizes."""

    config_class = AptQwen3MoeConfig
