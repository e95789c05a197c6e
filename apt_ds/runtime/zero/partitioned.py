"""Weights that may be spread over ranks (ZeRO stage 3): whole shapes, shares of ranks, and how to gather them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.runtime.zero.partition_parameters import is_zero_param as has_zero_id
from torch import nn

from apt_ds.runtime import collectives
from apt_ds.runtime.packed import QuantizedParameter


class PartitionedParameter(nn.Parameter):
    """What DeepSpeed adds to a parameter under ZeRO stage 3. Only for type checks: DeepSpeed sets attributes.

    Attributes:
        ds_shape: of the whole parameter.
        ds_numel: entries of the whole parameter.
        ds_tensor: this rank's share, flat and padded to the largest share.
        ds_secondary_tensor: a second share, which ZeRO++ gathers from within a node. None without it.
    """

    ds_shape: tuple[int, ...]
    ds_numel: int
    ds_secondary_tensor: torch.Tensor | None
    ds_tensor: torch.Tensor
    ds_process_group: Any
    convert_to_zero_parameters: Any


def is_zero_param(parameter: nn.Parameter) -> TypeGuard[PartitionedParameter]:
    """Whether DeepSpeed partitions the parameter (stage 3)."""
    return bool(has_zero_id(parameter))


def is_partitioned(model: nn.Module) -> bool:
    """Whether weights are spread over ranks (ZeRO-3)."""
    return any(is_zero_param(p) for p in model.parameters())


def full_numel(parameter: nn.Parameter) -> int:
    """Number of weights, partitioned or not, packed or not."""
    return full_shape(parameter).numel()


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape, partitioned or not, packed or not."""
    if isinstance(parameter, QuantizedParameter):
        return parameter.full
    return torch.Size(parameter.ds_shape) if is_zero_param(parameter) else parameter.shape


def own_part(parameter: nn.Parameter) -> tuple[int, torch.Tensor]:
    """(offset, flat values) of this rank's share. The shares of all ranks make the whole. Needs no other rank.

    Of a packed weight: of its codes.
    """
    if is_zero_param(parameter):
        part = parameter.ds_tensor.numel()
        start = min(part * parameter.ds_process_group.rank(), parameter.ds_numel)
        return start, parameter.ds_tensor.flatten()[: parameter.ds_numel - start]
    part = -(-parameter.numel() // collectives.world_size())
    start = min(part * collectives.rank(), parameter.numel())
    return start, parameter.detach().flatten()[start : start + part]


def held_part(parameter: nn.Parameter) -> torch.Tensor:
    """What this rank holds of it, for writing: its share under stage 3, else all."""
    return parameter.ds_tensor if is_zero_param(parameter) else parameter.detach()


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Whole weights inside, for reading. Does nothing below stage 3. Collective."""
    partitioned = [p for p in parameters if is_zero_param(p)]
    with GatheredParameters(partitioned, enabled=bool(partitioned)):
        yield


def shard(parameters: list[nn.Parameter], like: nn.Parameter) -> None:
    """Partition plain `parameters` if `like` is partitioned. Rank 0's values win. Collective."""
    if is_zero_param(like):
        like.convert_to_zero_parameters(param_list=parameters)


def release(parameter: nn.Parameter) -> None:
    """Free the values of a weight that has been replaced: under stage 3 it is in a reference cycle and would stay."""
    parameter.data = parameter.data.new_empty(0)
    if is_zero_param(parameter):
        parameter.ds_tensor.data = parameter.ds_tensor.data.new_empty(0)
