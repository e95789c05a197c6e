"""Sublayers that lost all their blocks: what remains of one is the bias of its last linear layer.

A copy of this file is written beside exported weights, so it imports torch only.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Bias(nn.Module):
    """The linear layer of a sublayer without blocks. It has no columns, so that its output is its bias.

    bias: [d]. Zeros where the layer had none.
    """

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    @classmethod
    def of_width(cls, width: int) -> "Bias":
        """Zeros of a width, to be overwritten by a checkpoint."""
        return cls(nn.Parameter(torch.zeros(width)))

    def forward(self, x: Tensor) -> Tensor:
        """The bias, once a token: [..., 0] -> [..., d]."""
        return self.bias.expand(*x.shape[:-1], -1)


class EmptiedAttention(nn.Module):
    """The attention of a decoder layer, whose output projection is inside. It keeps the length of the cache true."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        self.o_proj: nn.Module = attention.o_proj

    def forward(
        self, hidden_states: Tensor, *args: object, past_key_values: Any = None, **kwargs: object
    ) -> tuple[Tensor, None]:
        """The projection's bias and no attention weights."""
        if past_key_values is not None:
            # caches take their length from the keys: one empty number a token
            key = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            past_key_values.update(key, key, self.layer_idx)
        return self.o_proj(hidden_states[..., :0]), None


class EmptiedFeedForward(nn.Module):
    """A feed-forward layer whose second projection is inside."""

    def __init__(self, feed_forward: Any) -> None:
        super().__init__()
        self.down_proj: nn.Module = feed_forward.down_proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The projection's bias."""
        return self.down_proj(hidden_states[..., :0])


class EmptiedHeads(nn.Module):
    """An attention whose output projection is outside."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        """No features, [batch, length, 0], and no attention weights."""
        return hidden_states[..., :0], None


class EmptiedNeurons(nn.Module):
    """A first feed-forward projection. The second one is outside."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """No features, [batch, length, 0]."""
        return hidden_states[..., :0]
