"""Runs the LM head on trained tokens only, because most tokens of a batch have no label.

A model of transformers computes the logits of all its tokens. `logits_of` puts a hook on the LM head for one forward
pass. The hook selects the trained tokens. Shapes: B rows, L tokens a row, d hidden dimensions, n trained tokens,
m >= n positions (`pad_positions`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.data.batching import round_up
from apt_ds.losses import cross_entropy, liger
from apt_ds.models.unwrap import pretrained_model


def pad_positions(positions: Tensor) -> Tensor:
    """Positions, padded with position 0 to a multiple of 8: a matrix product of odd rows may take twice as long.

    Args:
        positions: int64 [n], see `logits_of`.

    Returns:
        int64 [m], m the next multiple of 8.
    """
    return torch.cat([positions, positions.new_zeros(round_up(len(positions)) - len(positions))])


def logits_of(model: nn.Module, inputs: dict[str, Any], positions: Tensor, count: int) -> Tensor:
    """Logits of selected tokens.

    Args:
        model: A model with an LM head, or an engine around it.
        inputs: Arguments of the model's forward, of B x L tokens that reach the head.
        positions: int64 [m] on the model's device. They index the B * L tokens, row after row.
        count: How many of the first positions to return.

    Returns:
        [count, vocabulary] in the head's dtype.
    """

    def select_tokens(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, -2).index_select(0, positions),)

    handle = _lm_head(model).register_forward_pre_hook(select_tokens)
    try:
        return model(**inputs, use_cache=False).logits[:count]
    finally:
        handle.remove()


def loss_of(model: nn.Module, inputs: dict[str, Any], positions: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of selected tokens, summed.

    A frozen head without bias gets it from `liger.of_hidden`, so that the logits never exist as a whole.

    Args:
        model: A model with an LM head, or an engine around it.
        inputs: Arguments of the model's forward.
        positions: int64 [m] on the model's device, see `logits_of`.
        targets: int64 [n] on the model's device, the labels of the first n positions.

    Returns:
        Scalar in nats, in fp32 or the wider dtype of the logits.
    """
    head = _lm_head(model)
    has_bias = getattr(head, "bias", None) is not None
    if head.weight.requires_grad or has_bias or head.weight.dtype == torch.float16:
        return cross_entropy.of_logits(logits_of(model, inputs, positions, len(targets)), targets)

    def loss_forward(hidden: Tensor) -> Tensor:
        return liger.of_hidden(hidden.flatten(0, -2).index_select(0, positions), head.weight, targets)

    # ZeRO-3 gathers the head's weight only while the head's own `forward` runs, so the loss is computed there
    vars(head)["forward"] = loss_forward
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        del head.forward


def _lm_head(model: nn.Module) -> nn.Linear:
    head = pretrained_model(model).get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head
