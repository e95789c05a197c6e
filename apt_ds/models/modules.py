"""Finding and replacing the modules of a model by their paths."""

from __future__ import annotations

from torch import nn


def linear_at(model: nn.Module, path: str) -> nn.Linear:
    """The linear layer at a path, plain, quantized or with an adapter."""
    module = model.get_submodule(path)
    assert isinstance(module, nn.Linear), f"{path} is a {type(module).__name__}"
    return module


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at a path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
