"""Phi-3 with a linear layer each for queries, keys, values, gate and up, and sizes by layer. Needs transformers.

The stock model joins the first three in one weight and the last two in another. `apt_layer_sizes.py` beside this file
says what the configuration adds.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, Phi3Config, Phi3ForCausalLM, Phi3ForSequenceClassification, Phi3Model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import (
    Phi3Attention,
    Phi3MLP,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_layer_sizes import LayerSizes, checked_config


class SplitPhi3Attention(Phi3Attention):
    """The stock attention with `q_proj`, `k_proj` and `v_proj` in place of `qkv_proj`. It has any number of heads."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def forward(  # type: ignore[override]  # the stock class states three results and returns two
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend. [batch, length, hidden] -> the same shape, and the scores where the kernel returns them."""
        shape = hidden_states.shape[:-1]
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (p(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2) for p in projections)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        kernel = self.config._attn_implementation
        attend = eager_attention_forward if kernel == "eager" else ALL_ATTENTION_FUNCTIONS[kernel]
        output, scores = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self.config, "sliding_window", None),
            **kwargs,
        )
        return self.o_proj(output.reshape(*shape, -1).contiguous()), scores


class SplitPhi3MLP(Phi3MLP):
    """The stock feed-forward sublayer with `gate_proj` and `up_proj` in place of `gate_up_proj`."""

    gate_proj: nn.Linear
    up_proj: nn.Linear

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, length, hidden] -> [batch, length, hidden]."""
        return self.down_proj(self.up_proj(hidden_states) * self.activation_fn(self.gate_proj(hidden_states)))


def split_layers(layers: Iterable[Any], config: Any) -> None:
    """Replace the joined linear layers of each decoder layer. New layers have the sizes of their own layer.

    Args:
        layers: stock decoder layers.
        config: the configuration. With `LayerSizes` layers may differ.
    """
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    same = {name: getattr(config, name) for name in names}
    by_layer = config.layer_sizes() if hasattr(config, "layer_sizes") else []
    hidden = config.hidden_size
    for number, layer in enumerate(layers):
        heads, groups, neurons = (by_layer[number] if by_layer else same).values()
        attention, mlp = layer.self_attn, layer.mlp
        del attention.qkv_proj, mlp.gate_up_proj
        attention.__class__, mlp.__class__ = SplitPhi3Attention, SplitPhi3MLP
        size = attention.head_dim
        attention.q_proj = nn.Linear(hidden, heads * size, bias=False)
        attention.k_proj, attention.v_proj = (nn.Linear(hidden, groups * size, bias=False) for _ in range(2))
        attention.o_proj = nn.Linear(heads * size, hidden, bias=False)
        mlp.gate_proj, mlp.up_proj = (nn.Linear(hidden, neurons, bias=False) for _ in range(2))
        mlp.down_proj = nn.Linear(neurons, hidden, bias=False)


class SplitPhi3ForCausalLM(Phi3ForCausalLM):
    """The stock language model with split layers. Layers are alike."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__(config)
        split_layers(self.model.layers, config)
        self.post_init()


@checked_config  # without it, the checks of the stock configuration would stay in force
class AptPhi3Config(LayerSizes, Phi3Config):
    """Phi3Config plus the sizes of each layer. The stock fields are the largest."""

    model_type = "apt_phi3"
    head_dim: int | None = None
    layer_key_value_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None

    def validate_rope(self) -> None:
        """Accept the factors of long positions: the stock check derives their number from hidden_size."""

    def _rope_scaling_validation(self) -> None:
        """As `validate_rope`, under its name in transformers 4."""


class AptPhi3Model(Phi3Model):
    """The stock base model with split layers of their own sizes."""

    config_class = AptPhi3Config

    def __init__(self, config: AptPhi3Config) -> None:
        super().__init__(config)
        split_layers(self.layers, config)
        self.post_init()


AutoModel.register(AptPhi3Config, AptPhi3Model, exist_ok=True)  # stock classes with another head make their base so


class AptPhi3ForCausalLM(Phi3ForCausalLM):
    """The stock language model with split layers of their own sizes."""

    config_class = AptPhi3Config

    def __init__(self, config: AptPhi3Config) -> None:
        super().__init__(config)
        split_layers(self.model.layers, config)
        self.post_init()


class AptPhi3ForSequenceClassification(Phi3ForSequenceClassification):
    """The stock classifier. Its base has split layers of their own sizes."""

    config_class = AptPhi3Config
