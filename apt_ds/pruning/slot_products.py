"""The products of `products.py` for the neurons of experts, which see only the tokens that a router sends them.

Shapes: S slots, each a token at one of its experts, E experts, f neurons of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apt_ds.pruning.activation_hooks import CountedTokens, Observer
from apt_ds.pruning.fixed_order import in_order


@dataclass(frozen=True)
class Slots:
    """Where the rows of an activation [S, f] come from.

    Attributes:
        experts: int64 [S], the expert of each row.
        tokens: int64 [S], the token of each row.
        counted: the tokens that count.
        count: E, the number of experts.
    """

    experts: Tensor
    tokens: Tensor
    counted: CountedTokens
    count: int

    def valid(self) -> Tensor:
        """What each slot counts, fp32 [S, 1]."""
        return self.counted.valid.float()[0, self.tokens].unsqueeze(1)

    def by_expert(self, values: Tensor) -> Tensor:
        """Sum over the slots of each expert: fp32 [S, f] -> [E, f]."""
        return _summed(values, self.experts, self.count)

    def by_example(self, values: Tensor) -> Tensor:
        """Sum over the slots of each expert in each example: fp32 [S, f] -> [examples, E, f]."""
        if self.counted.members is None:
            examples, number = self.counted.rows, self.tokens // (self.counted.valid.shape[1] // self.counted.rows)
        else:
            # a token counts in one example at most. The others get 0 from `valid`
            examples, number = len(self.counted.members), self.counted.members.argmax(dim=0)[self.tokens]
        sums = _summed(values, number * self.count + self.experts, examples * self.count)
        return sums.view(examples, self.count, -1)


def watch_batch(x: Tensor, slots: Slots, sums: Tensor) -> Observer:
    """As `BatchProduct.watch`, of the neurons of experts: [S, f] into sums [2, E * f]."""
    table, valid = sums.view(2, slots.count, -1), slots.valid()
    activation = slots.by_expert(x.float().abs() * valid)

    def commit(gradient: Tensor) -> None:
        table[0] += activation
        table[1] += slots.by_expert(gradient.float().abs() * valid)

    return commit


def watch_per_example(x: Tensor, slots: Slots, sums: Tensor) -> Observer:
    """As `PerExampleProduct.watch`, of the neurons of experts: [S, f] into sums [2, E * f]."""
    table, valid = sums.view(2, slots.count, -1), slots.valid()
    activation = slots.by_expert(x.float().abs() * valid)

    def commit(gradient: Tensor) -> None:
        table[0] += activation
        table[1] += slots.by_example(x.float() * gradient.float() * valid).abs().sum(dim=0)

    return commit


def _summed(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sum over the rows of each group in a fixed order: fp32 [S, f] and int64 [S] -> [count, f]."""
    with in_order():
        return torch.zeros(count, values.shape[1], device=values.device).index_add_(0, groups, values)
