"""A cut copy of a model that an engine or DDP holds, on the host of the first rank, to be written.

The model itself goes on under its engine, masked. Other ranks make the copy without memory, on the `meta` device.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from apt_ds.models import adapter, task_heads
from apt_ds.models.architectures import architecture_of
from apt_ds.models.blocks import Anatomy
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime import collectives, zero


@torch.no_grad()
def cut_copy(
    model: PreTrainedModel,
    config: PretrainedConfig,
    anatomy: Anatomy,
    keep: np.ndarray,
    task: str,
    targets: tuple[str, ...],
) -> tuple[PreTrainedModel, Anatomy]:
    """Copy a model with adapters, and cut the copy. Collective.

    Args:
        model: the model without its wrapper, whole or partitioned. It is not changed.
        config: its configuration before any cut.
        anatomy: its blocks.
        keep: bool [blocks], the blocks that remain.
        task: its task type.
        targets: the projections that have an adapter.

    Returns:
        The cut copy and its blocks.
    """
    spec = architecture_of(config)
    with zero.whole_while_making(), torch.device("meta"):
        empty = spec.empty_model(config, task, next(model.parameters()).dtype, "eager")
    spec.prepare(empty, anatomy)
    # what `prepare` notes on the meta device is read later
    for path, buffer in list(model.named_buffers()):
        parent, _, name = path.rpartition(".")
        empty.get_submodule(parent).register_buffer(name, buffer.to("cpu", copy=True), persistent=False)
    adapter.attach(empty, anatomy, targets, 1, 0)
    task_heads.attach(empty, anatomy)
    _copy_weights(model, empty)
    empty.config = copy.deepcopy(model.config)
    return empty, apply_plan(empty, anatomy, Plan(keep=keep), None, torch.Generator())


def _copy_weights(model: nn.Module, target: nn.Module) -> None:
    """Give every module of `target` copies of the parameters of `model`, one module gathered at a time. Collective."""
    copies: dict[int, nn.Parameter] = {}  # by identity: tied weights are one parameter of several modules
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        with zero.gathered(list(own.values())):
            for name, parameter in own.items():
                if id(parameter) not in copies:
                    copies[id(parameter)] = nn.Parameter(_copied(parameter), requires_grad=False)
                setattr(target.get_submodule(path), name, copies[id(parameter)])


def _copied(parameter: nn.Parameter) -> torch.Tensor:
    value = parameter.detach()
    if collectives.is_main():
        return value.to("cpu", copy=True)
    return torch.empty(value.shape, dtype=value.dtype, device="meta")
