"""The auxiliary loss of routers, which spreads tokens over experts (Fedus et al., "Switch Transformers", equation 4).

For each layer with E experts: E times the sum over experts of the fraction of tokens that reach the expert times its
mean probability. The loss is the mean over layers, times the coefficient of the configuration. It is that of each
micro-batch of a rank, weighted by tokens. A layer may have lost experts, so layers are not added up before the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apt_ds.models.blocks import Anatomy


class RouterLoss:
    """Hooks on routers, and the loss of what they record.

    Attributes:
        coefficient: Factor of the loss. 0: there is no such loss, and no hook.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.coefficient = anatomy.router_loss
        self.paths = [mixture.router for mixture in anatomy.experts]
        self._recorded: list[tuple[Tensor, Tensor]] | None = None
        self._handles: list[RemovableHandle] = []

    def install(self, model: nn.Module) -> None:
        """Register the hooks. Call it after `Masks.install`, so that they record masked logits."""
        assert not self._handles
        for path in self.paths if self.coefficient else ():
            self._handles.append(model.get_submodule(path).register_forward_hook(self._on_router))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def recording(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Record (logits [T, E], experts int64 [T, k]) of every layer in forward passes with gradients.

        Passes after the context, such as recomputation in backward, are not recorded.
        """
        recorded: list[tuple[Tensor, Tensor]] = []
        self._recorded = recorded
        try:
            yield recorded
        finally:
            self._recorded = None

    def loss(self, recorded: list[tuple[Tensor, Tensor]], attention_mask: Tensor, tokens: int) -> Tensor:
        """This micro-batch's part of the loss of the global batch: an fp32 scalar.

        Args:
            recorded: What `recording` gave for a forward pass.
            attention_mask: 1 for tokens that count, [B, L].
            tokens: Tokens of the global batch that count.
        """
        valid = attention_mask.flatten().float().unsqueeze(1)
        layers = [layer_loss(logits, experts, valid) for logits, experts in recorded]
        return self.coefficient * torch.stack(layers).mean() * valid.sum() / tokens

    def _on_router(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        if self._recorded is not None and torch.is_grad_enabled():
            self._recorded.append((output[0], output[2]))


def layer_loss(logits: Tensor, experts: Tensor, valid: Tensor) -> Tensor:
    """The loss of one layer: an fp32 scalar.

    Args:
        logits: [T, E].
        experts: int64 [T, k], the experts of each token.
        valid: 1 for tokens that count, fp32 [T, 1].
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    reached = torch.zeros_like(probabilities).scatter_(1, experts, 1.0)
    count = valid.sum()
    return logits.shape[1] * ((reached * valid).sum(0) / count * (probabilities * valid).sum(0) / count).sum()
