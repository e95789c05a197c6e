"""Qwen3-MoE whose layers keep different numbers of heads, experts and neurons. Needs transformers and what it requires.

The configuration adds three lists, one entry per layer: `layer_key_value_heads`, `layer_experts` and
`layer_intermediate_sizes`, the neurons of each expert.
"""

import copy

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeTopKRouter


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
        queries = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
        width, head_dim = config.hidden_size, config.head_dim
        bias = config.attention_bias
        lists = (config.layer_key_value_heads, config.layer_experts, config.layer_intermediate_sizes)
        sizes = zip(*(numbers or [] for numbers in lists), strict=True)
        for layer, (groups, experts, neurons) in zip(self.model.layers, sizes, strict=True):
            attention, kv = layer.self_attn, groups * head_dim
            attention.q_proj = nn.Linear(width, queries * kv, bias=bias)
            attention.k_proj = nn.Linear(width, kv, bias=bias)
            attention.v_proj = nn.Linear(width, kv, bias=bias)
            attention.o_proj = nn.Linear(queries * kv, width, bias=bias)
            own = copy.copy(config)
            own.num_local_experts, own.moe_intermediate_size = experts, neurons
            layer.mlp.gate, layer.mlp.experts = Qwen3MoeTopKRouter(own), Qwen3MoeExperts(own)
            layer.mlp.experts.config = config
        self.post_init()
