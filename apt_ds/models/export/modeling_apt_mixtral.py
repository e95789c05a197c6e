"""Mixtral whose layers keep different numbers of heads, experts and neurons. Needs transformers and what it requires.

The configuration adds three lists, one entry per layer: `layer_key_value_heads`, `layer_experts` and
`layer_intermediate_sizes`, the neurons of each expert.
"""

import copy

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralTopKRouter


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
        queries = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
        width, head_dim = config.hidden_size, config.head_dim
        lists = (config.layer_key_value_heads, config.layer_experts, config.layer_intermediate_sizes)
        sizes = zip(*(numbers or [] for numbers in lists), strict=True)
        for layer, (groups, experts, neurons) in zip(self.model.layers, sizes, strict=True):
            attention, kv = layer.self_attn, groups * head_dim
            attention.q_proj = nn.Linear(width, queries * kv, bias=False)
            attention.k_proj = nn.Linear(width, kv, bias=False)
            attention.v_proj = nn.Linear(width, kv, bias=False)
            attention.o_proj = nn.Linear(queries * kv, width, bias=False)
            own = copy.copy(config)
            own.num_local_experts, own.intermediate_size = experts, neurons
            layer.mlp.gate, layer.mlp.experts = MixtralTopKRouter(own), MixtralExperts(own)
            layer.mlp.experts.config = config
        self.post_init()
