"""OLMoE whose layers keep different numbers of heads, experts and neurons. Needs transformers and what it requires.

The configuration adds three lists, one entry per layer: `layer_key_value_heads`, `layer_experts` and
`layer_intermediate_sizes`, the neurons of each expert.
"""

from typing import Any

from transformers import AutoModel, OlmoeConfig, OlmoeForCausalLM, OlmoeModel
from transformers.models.olmoe import modeling_olmoe as stock

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_expert_sizes import ExpertSizes, resize_mixtures
from .apt_layer_sizes import checked_config


@checked_config
class AptOlmoeConfig(ExpertSizes, OlmoeConfig):
    """OlmoeConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_olmoe"
    head_dim: int | None = None
    layer_key_value_heads: list[int] | None = None
    layer_experts: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


def resize(layers: Any, config: AptOlmoeConfig) -> None:
    """Replace the attention and the experts of each layer by ones of its own sizes."""
    resize_mixtures(layers, config, config.neurons_field, stock.OlmoeTopKRouter, stock.OlmoeExperts)
    for layer in layers:
        attention = layer.self_attn
        attention.q_norm = stock.OlmoeRMSNorm(attention.q_proj.out_features, eps=config.rms_norm_eps)
        attention.k_norm = stock.OlmoeRMSNorm(attention.k_proj.out_features, eps=config.rms_norm_eps)


class AptOlmoeModel(OlmoeModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptOlmoeConfig

    def __init__(self, config: AptOlmoeConfig) -> None:
        super().__init__(config)
        resize(self.layers, config)
        self.post_init()


AutoModel.register(AptOlmoeConfig, AptOlmoeModel, exist_ok=True)  # stock classes with another head make their base so


class AptOlmoeForCausalLM(OlmoeForCausalLM):
    """The stock language model with layers of their own sizes."""

    config_class = AptOlmoeConfig

    def __init__(self, config: AptOlmoeConfig) -> None:
        super().__init__(config)
        resize(self.model.layers, config)
        self.post_init()
