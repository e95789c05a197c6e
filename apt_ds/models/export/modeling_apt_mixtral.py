"""Mixtral whose layers keep different numbers of heads, experts and neurons. Needs transformers and what it requires.

The configuration adds three lists, one entry per layer: `layer_key_value_heads`, `layer_experts` and
`layer_intermediate_sizes`, the neurons of each expert.
"""

from huggingface_hub.dataclasses import strict
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralTopKRouter

from .apt_expert_sizes import resize_mixtures


@strict
class AptMixtralConfig(MixtralConfig):
    """MixtralConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_mixtral"
    layer_key_value_heads: list[int] | None = None
    layer_experts: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


class AptMixtralForCausalLM(MixtralForCausalLM):
    """Stock Mixtral with the attention and the experts of each layer replaced by ones of its own sizes."""

    config_class = AptMixtralConfig

    def __init__(self, config: AptMixtralConfig) -> None:
        super().__init__(config)
        resize_mixtures(self.model.layers, config, "intermediate_size", MixtralTopKRouter, MixtralExperts)
        self.post_init()
