"""First-order products of activations and gradients, in two forms behind one interface (METHOD.md section 3).

`BatchProduct` is the method's A * G, with A = sum |H| and G = sum |dL/dH| over all tokens of the global batch.
`PerExampleProduct` sums |sum over tokens of H * dL/dH| over examples. It sees that a neuron may be large on one token
and matter on another, and that contributions of two tokens may cancel.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from apt_ds.pruning import slot_products
from apt_ds.pruning.activation_hooks import CountedTokens, Observer
from apt_ds.pruning.slot_products import Slots


class Product(Protocol):
    """How the sums of a step are taken at a hooked module, and what they give."""

    def watch(self, x: Tensor, tokens: CountedTokens, sums: Tensor) -> Observer:
        """Observe an activation. Nothing is added to `sums` before the gradient arrives.

        Args:
            x: activation, [batch, length, d].
            tokens: the tokens that count.
            sums: fp32 [2, d]. Row 0 takes A. Row 1 takes what `first_order` needs of the gradient.

        Returns:
            What to call with the gradient of `x`.
        """

    def watch_slots(self, x: Tensor, slots: Slots, sums: Tensor) -> Observer:
        """As `watch`, of the neurons of a layer's experts. x: [S, f]. sums: fp32 [2, E * f]."""

    def first_order(self, sums: Tensor) -> Tensor:
        """The first-order term of each dimension, from sums over all ranks: fp32 [2, d] -> [d]."""


class BatchProduct:
    """A * G: each factor is summed over the batch first. Stores no activation."""

    def watch(self, x: Tensor, tokens: CountedTokens, sums: Tensor) -> Observer:
        """Sum |x| now and |gradient| later."""
        activation = abs_sum(tokens, x)

        def commit(gradient: Tensor) -> None:
            sums[0] += activation
            sums[1] += abs_sum(tokens, gradient)

        return commit

    def watch_slots(self, x: Tensor, slots: Slots, sums: Tensor) -> Observer:
        """Sum |x| now and |gradient| later, over the tokens that reach each expert."""
        return slot_products.watch_batch(x, slots, sums)

    def first_order(self, sums: Tensor) -> Tensor:
        """A * G, fp32 [d]."""
        return sums[0] * sums[1]


class PerExampleProduct:
    """Sum over examples of |sum over tokens of H * dL/dH|. Stores every activation until its gradient arrives."""

    def watch(self, x: Tensor, tokens: CountedTokens, sums: Tensor) -> Observer:
        """Sum |x| now and the products with x later."""
        activation = abs_sum(tokens, x)

        def commit(gradient: Tensor) -> None:
            sums[0] += activation
            sums[1] += example_products(tokens.valid, x, gradient, tokens.members)

        return commit

    def watch_slots(self, x: Tensor, slots: Slots, sums: Tensor) -> Observer:
        """Sum |x| now and the products with x later, over the tokens of each example that reach each expert."""
        return slot_products.watch_per_example(x, slots, sums)

    def first_order(self, sums: Tensor) -> Tensor:
        """The sum over examples, fp32 [d]."""
        return sums[1]


PRODUCTS: dict[str, type[Product]] = {"batch": BatchProduct, "per_example": PerExampleProduct}


def abs_sum(tokens: CountedTokens, x: Tensor) -> Tensor:
    """Sum of |x| over counted tokens: [..., tokens, d] -> fp32 [d]."""
    return column_mass(tokens.valid, x) if tokens.blank is None else column_norm(tokens.blank, x)


def column_mass(valid: Tensor, x: Tensor) -> Tensor:
    """Sum of |x| over counted tokens: [1, tokens] x [..., tokens, d] -> fp32 [d]. One fused reduction."""
    return (valid.to(x.dtype) @ x.detach().abs().reshape(-1, x.shape[-1])).float().squeeze(0)


def column_norm(blank: Tensor, x: Tensor) -> Tensor:
    """What `column_mass` gives, by reading x once and writing nothing: all tokens less those that do not count.

    For a GPU, where the sum costs memory traffic. A CPU is slow at reducing columns.

    Args:
        blank: int64 [n], the positions of the tokens that do not count.
        x: [..., tokens, d].

    Returns:
        fp32 [d].
    """
    flat = x.detach().reshape(-1, x.shape[-1])
    total = torch.linalg.vector_norm(flat, 1, dim=0, dtype=torch.float32)
    if not len(blank):
        return total
    return (total - torch.linalg.vector_norm(flat[blank], 1, dim=0, dtype=torch.float32)).clamp(min=0)


def example_products(valid: Tensor, x: Tensor, gradient: Tensor, members: Tensor | None = None) -> Tensor:
    """Sum over examples of |sum of x * gradient over their counted tokens|.

    Products and sums are rounded like x. The summing itself is not. fp16 lacks the range and is computed in fp32.

    Args:
        valid: which tokens count, [1, batch * length].
        x: activation, [batch, length, d].
        gradient: dL/dx, [batch, length, d].
        members: what each token counts in each example, [examples, batch * length]. None: a row is an example.

    Returns:
        fp32 [d].
    """
    products = x.float() * gradient.float() if x.dtype == torch.float16 else x * gradient
    if members is None:
        counts = valid.to(products.dtype).view(len(x), 1, -1)
        return (counts @ products).float().abs().sum(dim=(0, 1))
    return (members.to(products.dtype) @ products.flatten(0, 1)).float().abs().sum(dim=0)
