"""LLaMA whose layers keep different numbers of heads and neurons. Needs transformers and what it requires.

The configuration adds two lists, one entry per layer: `layer_key_value_heads` and `layer_intermediate_sizes`.
"""

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


@strict  # without it, the check of LlamaConfig below would stay in force
class AptLlamaConfig(LlamaConfig):
    """LlamaConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_llama"
    layer_key_value_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None

    def validate_architecture(self) -> None:
        """Accept every hidden size: `head_dim` is explicit, so the number of heads need not divide it."""


class AptLlamaForCausalLM(LlamaForCausalLM):
    """Stock LLaMA with the linear layers of each layer replaced by ones of its own sizes."""

    config_class = AptLlamaConfig

    def __init__(self, config: AptLlamaConfig) -> None:
        super().__init__(config)
        queries = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        width, bias, mlp_bias = config.hidden_size, config.attention_bias, config.mlp_bias
        sizes = zip(config.layer_key_value_heads or [], config.layer_intermediate_sizes or [], strict=True)
        for layer, (groups, neurons) in zip(self.model.layers, sizes, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            kv = groups * head_dim
            attention.q_proj = nn.Linear(width, queries * kv, bias=bias)
            attention.k_proj = nn.Linear(width, kv, bias=bias)
            attention.v_proj = nn.Linear(width, kv, bias=bias)
            attention.o_proj = nn.Linear(queries * kv, width, bias=bias)
            mlp.gate_proj = nn.Linear(width, neurons, bias=mlp_bias)
            mlp.up_proj = nn.Linear(width, neurons, bias=mlp_bias)
            mlp.down_proj = nn.Linear(neurons, width, bias=mlp_bias)
        self.post_init()
