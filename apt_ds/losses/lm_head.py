"""The head over the vocabulary, asked for the tokens that are trained alone: most of a batch is not.

A stock model makes logits of all its tokens; a hook on its head, worn for one forward pass, picks some.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.losses import cross_entropy
from apt_ds.runtime import zero

GROUP = 8  # rows: an odd number of them may take twice as long to multiply


def grouped(places: Tensor) -> Tensor:
    """Places, int64 [n], and the first token again and again until there are whole groups of them."""
    return torch.cat([places, places.new_zeros(-len(places) % GROUP)])


def logits_of(model: nn.Module, inputs: dict[str, Any], places: Tensor, count: int) -> Tensor:
    """Logits [count, vocabulary] of the tokens at the first `count` of `places`.

    inputs: of the model's forward; places: int64, on the device, tokens counted row after row.
    """

    def chosen(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, -2).index_select(0, places),)

    handle = _head(model).register_forward_pre_hook(chosen)
    try:
        return model(**inputs, use_cache=False).logits[:count]
    finally:
        handle.remove()


def loss_of(model: nn.Module, inputs: dict[str, Any], places: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the tokens at `places` with `targets`, int64 [count], summed, in nats, fp32 at least.

    A frozen head makes it without ever holding the logits.
    """
    head = _head(model)
    if head.weight.requires_grad or head.bias is not None or head.weight.dtype == torch.float16:
        return cross_entropy.of_logits(logits_of(model, inputs, places, len(targets)), targets)

    def forward(hidden: Tensor) -> Tensor:
        return cross_entropy.of_hidden(hidden.flatten(0, -2).index_select(0, places), head.weight, targets)

    # inside its own call an engine has the head's weight at hand
    head.forward = forward
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        del head.forward


def _head(model: nn.Module) -> nn.Linear:
    return zero.unwrap(model).get_output_embeddings()
