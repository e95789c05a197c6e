"""Other values for the parameters of a model, for forward passes without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import deepspeed
import torch
from torch import Tensor, nn

from apt_ds.runtime.zero.engine import release_gathered, unwrap
from apt_ds.runtime.zero.partitioned import PartitionedParameter, is_zero_param


@contextmanager
def values_replaced(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the context the parameters have other values. Collective under stage 3.

    The parameters point to other memory for a while. Nothing is copied, so that flat buffers and masters stay.

    Args:
        model: an engine, or a plain model.
        values: whole tensors by parameter name, in the parameters' dtype.
    """
    _release(model)
    kept: list[tuple[Tensor, Tensor]] = []
    for name, parameter in unwrap(model).named_parameters():
        if name in values:
            target = parameter.ds_tensor if is_zero_param(parameter) else parameter
            kept.append((target, target.data))
            _forget_secondary(parameter)
            value = _own_share(parameter, values[name]) if is_zero_param(parameter) else values[name]
            target.data = value.to(target.device)
    try:
        yield
    finally:
        _release(model)
        for target, data in kept:
            target.data = data
        for name, parameter in unwrap(model).named_parameters():
            if name in values:
                _forget_secondary(parameter)


def _forget_secondary(parameter: nn.Parameter) -> None:
    """Drop the copy of a share that ZeRO++'s hpZ gathers from: it has the values of its time."""
    if is_zero_param(parameter):
        parameter.ds_secondary_tensor = None


def _release(model: nn.Module) -> None:
    """Release what earlier passes have gathered: it has the values of its time."""
    if isinstance(model, deepspeed.DeepSpeedEngine):
        release_gathered(model)


def _own_share(parameter: PartitionedParameter, value: Tensor) -> Tensor:
    """This rank's share of a whole tensor, flat and padded like `ds_tensor`."""
    share, group = parameter.ds_tensor.numel(), parameter.ds_process_group
    padded = torch.nn.functional.pad(value.flatten(), (0, share * group.size() - value.numel()))
    return padded.narrow(0, share * group.rank(), share).clone()
