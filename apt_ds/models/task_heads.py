"""The layers that make a task's answer: drawn where a checkpoint has none. Linear ones are trained whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.models.blocks import Anatomy
from apt_ds.models.modules import linear_at, replace_module
from apt_ds.runtime import zero


class Head(nn.Linear):
    """A trained `nn.Linear`. It takes over the parameters of a linear layer without a copy.

    Attributes:
        past: values to use instead of the parameters, by name, during the teacher's forward pass.
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.past: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """W x + b. [..., in_features] -> [..., out_features]."""
        return F.linear(x, self.past.get("weight", self.weight), self.past.get("bias", self.bias))


def attach(model: nn.Module, anatomy: Anatomy) -> None:
    """Make the layers of the task trainable, in place. The weights may be partitioned."""
    for path in anatomy.task_heads:
        head = Head(linear_at(model, path))
        head.requires_grad_(True)
        replace_module(model, path, head)


def start(model: nn.Module, paths: list[str], deviation: float, seed: int) -> None:
    """Give linear layers new Gaussian weights, norms weights of one, and both a bias of zero. Collective under stage 3.

    The same seed gives the same weights on every rank and for any partitioning.
    """
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        module = model.get_submodule(path)
        like = module.get_parameter("weight")
        shape = zero.full_shape(like)
        linear = isinstance(module, nn.Linear)
        values = {"weight": torch.randn(shape, generator=generator) * deviation if linear else torch.ones(shape)}
        if module.bias is not None:
            values["bias"] = torch.zeros(shape[0])
        for name, value in values.items():
            fresh = nn.Parameter(value.to(like.device, like.dtype), requires_grad=False)
            zero.shard([fresh], like=like)
            setattr(module, name, fresh)
