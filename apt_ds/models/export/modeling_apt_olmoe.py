"""OLMoE whose layers keep different numbers of heads, experts and neurons. Needs transformers and what it requires.

The configuration adds three lists, one entry per layer: `layer_key_value_heads`, `layer_experts` and
`layer_intermediate_sizes`, the neurons of each expert.
"""

from huggingface_hub.dataclasses import strict
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts, OlmoeRMSNorm, OlmoeTopKRouter

from .apt_expert_sizes import resize_mixtures


@strict
class AptOlmoeConfig(OlmoeConfig):
    """OlmoeConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_olmoe"
    head_dim: int | None = None
    layer_key_value_heads: list[int] | None = None
    layer_experts: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


class AptOlmoeForCausalLM(OlmoeForCausalLM):
    """Stock OLMoE with the attention and the experts of each layer replaced by ones of its own sizes."""

    config_class = AptOlmoeConfig

    def __init__(self, config: AptOlmoeConfig) -> None:
        super().__init__(config)
        resize_mixtures(self.model.layers, config, "intermediate_size", OlmoeTopKRouter, OlmoeExperts)
        for layer in self.model.layers:
            attention = layer.self_attn
            attention.q_norm = OlmoeRMSNorm(attention.q_proj.out_features, eps=config.rms_norm_eps)
            attention.k_norm = OlmoeRMSNorm(attention.k_proj.out_features, eps=config.rms_norm_eps)
        self.post_init()
