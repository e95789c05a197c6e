"""T5 whose layers keep different heads and numbers of neurons. Needs transformers only.

The configuration adds lists with one entry per layer: the heads, of `num_heads`, that each self-attention has
(`encoder_layer_heads`, `decoder_layer_heads`), how many each cross-attention has (`decoder_layer_cross_heads`), and
neurons (`encoder_layer_d_ff`, `decoder_layer_d_ff`). A stack computes one position bias, for all `num_heads` heads.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, T5Config, T5ForConditionalGeneration, T5ForSequenceClassification, T5Model
from transformers.models.t5.modeling_t5 import T5Attention

# transformers 4 adds the mask to the bias that later layers get, and does not tell attentions whether they are causal
VERSION_4 = "is_causal" not in inspect.signature(T5Attention.__init__).parameters


class AptT5Config(T5Config):
    """T5Config plus the sizes of each layer. num_heads: heads of the position bias. d_ff: the largest."""

    model_type = "apt_t5"
    encoder_layer_heads: list[list[int]] | None = None
    decoder_layer_heads: list[list[int]] | None = None
    decoder_layer_cross_heads: list[int] | None = None
    encoder_layer_d_ff: list[int] | None = None
    decoder_layer_d_ff: list[int] | None = None


class OwnHeadsAttention(T5Attention):
    """A self-attention that adds the position bias of its own heads, and hands on the bias of all."""

    def __init__(self, config: AptT5Config, number: int, heads: list[int]) -> None:
        super().__init__(config, number == 0, number, **({} if VERSION_4 else {"is_causal": config.is_decoder}))
        self.heads = heads
        self.index: Tensor | None = None
        self.whole: Tensor | None = None

    def own(self, bias: Tensor) -> Tensor:
        """The part of a bias [1, num_heads, queries, keys] that is this attention's."""
        if len(self.heads) == bias.shape[1]:
            return bias
        if self.index is None or self.index.device != bias.device:
            self.index = torch.tensor(self.heads, device=bias.device)
        return bias.index_select(1, self.index)

    def compute_bias(self, *lengths: Any, **options: Any) -> Tensor:
        """The bias of this attention's heads. That of all heads is kept for `forward`."""
        self.whole = super().compute_bias(*lengths, **options)
        return self.own(self.whole)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Any, ...]:
        """The output of a self-attention, the bias of all heads, and the attention weights."""
        own = None if position_bias is None else self.own(position_bias)
        output, _, *weights = super().forward(
            hidden_states, mask, position_bias=own, past_key_values=past_key_values, **options
        )
        if position_bias is None and self.whole is not None:
            position_bias, self.whole = self.whole, None
            if VERSION_4:
                position_bias = position_bias[:, :, -hidden_states.shape[1] :]
                position_bias = position_bias if mask is None else position_bias + mask[..., : position_bias.shape[-1]]
        return output, position_bias, *weights


class OwnCrossAttention(T5Attention):
    """A cross-attention. It has no position bias, and takes none from layers with other numbers of heads."""

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Any, ...]:
        """As the stock attention in the first layer."""
        return super().forward(hidden_states, mask, key_value_states, None, past_key_values, **options)


def resize(attention: T5Attention, heads: int, config: AptT5Config) -> None:
    """Give an attention linear layers for `heads` heads."""
    width = heads * config.d_kv
    attention.n_heads, attention.inner_dim = heads, width
    attention.q, attention.k, attention.v = (nn.Linear(config.d_model, width, bias=False) for _ in range(3))
    attention.o = nn.Linear(width, config.d_model, bias=False)


def resize_stack(stack: Any, heads: list[list[int]], cross: list[int], neurons: list[int]) -> None:
    """Replace attentions and linear layers of a stack by ones of each layer's own sizes."""
    config = stack.config
    for number, (block, kept, width) in enumerate(zip(stack.block, heads, neurons, strict=True)):
        block.layer[0].SelfAttention = OwnHeadsAttention(config, number, kept)
        resize(block.layer[0].SelfAttention, len(kept), config)
        if cross:
            attention = block.layer[1].EncDecAttention
            attention.__class__ = OwnCrossAttention
            resize(attention, cross[number], config)
        feed = block.layer[-1].DenseReluDense
        for name in ("wi_0", "wi_1") if config.is_gated_act else ("wi",):
            setattr(feed, name, nn.Linear(config.d_model, width, bias=False))
        feed.wo = nn.Linear(width, config.d_model, bias=False)


def resize_stacks(model: Any, config: AptT5Config) -> None:
    """Give the encoder and the decoder of a model layers of their own sizes."""
    resize_stack(model.encoder, config.encoder_layer_heads or [], [], config.encoder_layer_d_ff or [])
    cross, neurons = config.decoder_layer_cross_heads or [], config.decoder_layer_d_ff or []
    resize_stack(model.decoder, config.decoder_layer_heads or [], cross, neurons)


class AptT5Model(T5Model):
    """The stock base model with layers of their own sizes."""

    config_class = AptT5Config

    def __init__(self, config: AptT5Config) -> None:
        super().__init__(config)
        resize_stacks(self, config)
        self.post_init()


class AptT5ForConditionalGeneration(T5ForConditionalGeneration):
    """Stock T5 with layers of their own sizes."""

    config_class = AptT5Config

    def __init__(self, config: AptT5Config) -> None:
        super().__init__(config)
        resize_stacks(self, config)
        self.post_init()


class AptT5ForSequenceClassification(T5ForSequenceClassification):
    """The stock classifier with layers of their own sizes."""

    config_class = AptT5Config

    def __init__(self, config: AptT5Config) -> None:
        super().__init__(config)
        resize_stacks(self.transformer, config)
        self.post_init()


AutoModel.register(AptT5Config, AptT5Model, exist_ok=True)
