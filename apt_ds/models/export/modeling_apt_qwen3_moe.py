"""Qwen3-MoE whose layers keep different numbers of heads, experts and neurons. Needs transformers and what it requires.

The configuration adds three lists, one entry per layer: `layer_key_value_heads`, `layer_experts` and
`layer_intermediate_sizes`, the neurons of each expert.
"""

from huggingface_hub.dataclasses import strict
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeTopKRouter

from .apt_expert_sizes import resize_mixtures


@strict
class AptQwen3MoeConfig(Qwen3MoeConfig):
    """Qwen3MoeConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_qwen3_moe"
    head_dim: int | None = None
    layer_key_value_heads: list[int] | None = None
    layer_experts: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


class AptQwen3MoeForCausalLM(Qwen3MoeForCausalLM):
    """Stock Qwen3-MoE with the attention and the experts of each layer replaced by ones of its own sizes."""

    config_class = AptQwen3MoeConfig

    def __init__(self, config: AptQwen3MoeConfig) -> None:
        super().__init__(config)
        resize_mixtures(self.model.layers, config, "moe_intermediate_size", Qwen3MoeTopKRouter, Qwen3MoeExperts)
        self.post_init()
