"""Under ZeRO stage 3, gather a transformer layer at once instead of each of its modules.

DeepSpeed runs six hooks at every module that it gathers by itself. On one H200 they took three quarters of a step of
SmolLM2. A layer that is a leaf has six in all, and one collective gathers all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_module
from torch import nn
from torch.utils.hooks import RemovableHandle


def mark(model: nn.Module) -> list[RemovableHandle]:
    """Make the transformer layers of a model leaves. Call it before DeepSpeed puts its hooks on the model.

    DeepSpeed takes the gradients of a leaf when those of its inputs are there. So the inputs of each first layer must
    require one.

    Returns:
        The hooks on the first layers, to be removed with the engine.
    """
    handles = []
    for layers in layer_stacks(model):
        for _, layer in layers:
            set_z3_leaf_module(layer, True)
        handles.append(layers[0][1].register_forward_pre_hook(_require_gradient))
    return handles


def layer_stacks(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Paths and modules of the transformer layers, for each stack of them."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    stacks = []
    for path, stack in model.named_modules():
        if isinstance(stack, nn.ModuleList):
            layers = [(f"{path}.{i}", layer) for i, layer in enumerate(stack) if type(layer).__name__ in names]
            stacks += [layers] if layers else []
    return stacks


def _require_gradient(layer: nn.Module, args: tuple[Any, ...]) -> None:
    """Let the first input of a layer require a gradient where gradients are computed."""
    if torch.is_grad_enabled() and args and isinstance(args[0], torch.Tensor) and not args[0].requires_grad:
        args[0].requires_grad_()
