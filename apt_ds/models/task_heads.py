"""The linear layers an answer sits on: trained whole beside adapters, made anew where there are none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.models.adapter import replace_module
from apt_ds.models.blocks import Anatomy
from apt_ds.runtime import zero


class Head(nn.Linear):
    """A trained `nn.Linear`. Takes the linear layer's parameters over, copies nothing.

    past: values to use instead of the parameters, by name, while the teacher speaks.
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.past: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.past.get("weight", self.weight), self.past.get("bias", self.bias))


def attach(model: nn.Module, anatomy: Anatomy) -> None:
    """Train the model's heads, in place; works on weights that are already partitioned."""
    for path in anatomy.heads:
        head = Head(model.get_submodule(path))
        head.requires_grad_(True)
        replace_module(model, path, head)


def start(model: nn.Module, paths: list[str], deviation: float, seed: int) -> None:
    """Give linear layers new weights, Gaussian with a standard deviation, and no bias. Collective under stage 3.

    The same seed gives the same weights on every rank and for any partitioning.
    """
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        module = model.get_submodule(path)
        shape, like = zero.full_shape(module.weight), module.weight
        values = {"weight": torch.randn(shape, generator=generator) * deviation, "bias": torch.zeros(shape[0])}
        for name, value in values.items():
            fresh = nn.Parameter(value.to(like.device, like.dtype), requires_grad=False)
            zero.shard([fresh], like=like)
            setattr(module, name, fresh)
