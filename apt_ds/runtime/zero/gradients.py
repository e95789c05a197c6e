"""Gradients of an engine's trainable parameters, between a boundary's backward and its step.

Stage 3 shards every parameter, stages 1 and 2 a flat buffer of them all, stage 0 nothing. Here they look alike.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_grad, safe_get_local_fp32_param, safe_get_local_grad
from torch import Tensor, nn

from apt_ds.runtime.zero.engine import Engine, device, loss_scale
from apt_ds.runtime.zero.partitioned import is_zero_param

TOGETHER = 64  # products of parameters that are held at once


@torch.no_grad()
def weight_times_gradient(engine: Engine, parameters: list[nn.Parameter]) -> Tensor:
    """Sum |w * dL/dw| of each parameter, over this rank's shards only: sum it over ranks. fp32 [len(parameters)].

    Between the boundary's backward and its step. Touches no other rank, so it needs no collective of its own.
    """
    wait_for_offload(engine)
    sums = []
    for first in range(0, len(parameters), TOGETHER):
        pairs = [_local_weight_and_gradient(engine, p) for p in parameters[first : first + TOGETHER]]
        products = torch._foreach_mul([weight for weight, _ in pairs], [gradient for _, gradient in pairs])
        sums.append(torch.stack(torch._foreach_norm(products, 1)).to(parameters[first].device, torch.float32))
    ranks = 1 if engine.zero_optimization() else engine.dp_world_size
    return torch.cat(sums) / (loss_scale(engine) * ranks) if sums else torch.zeros(0, device=device())


@torch.no_grad()
def full_gradient(engine: Engine, parameter: nn.Parameter) -> Tensor:
    """dL/dw of a trained parameter, averaged over ranks, fp32, whole on every rank. Collective.

    Between the boundary's backward and its step, where alone DeepSpeed answers right.
    """
    wait_for_offload(engine)
    gradient = safe_get_full_grad(parameter) if engine.zero_optimization() else parameter.grad
    assert gradient is not None, "the parameter got no gradient"
    return gradient.float().to(parameter.device) / loss_scale(engine)


def wait_for_offload(engine: Engine) -> None:
    """Wait until the gradients that the engine offloads have arrived on the host.

    DeepSpeed copies a gradient to pinned memory without waiting. Nothing orders a read by the host after that copy.
    Gradients that stay on the device need no wait: the device reads them after it has written them.
    """
    if engine.zero_use_cpu_optimizer() and device().type != "cpu":
        get_accelerator().synchronize()


def _local_weight_and_gradient(engine: Engine, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    """This rank's share of a weight and of its gradient, flat. Empty where it has none."""
    if is_zero_param(parameter):
        weight, gradient = safe_get_local_fp32_param(parameter), safe_get_local_grad(parameter)
        return weight.flatten(), gradient.flatten()
    if not engine.zero_optimization():
        assert parameter.grad is not None, "the parameter got no gradient"
        return parameter.detach().flatten(), parameter.grad.flatten()
    # stages 1 and 2: the part of the flat buffers on this rank, None where it has none
    mapping: Any = vars(parameter)["_hp_mapping"]
    if mapping is None:
        # where the other shares are: norms of two devices cannot be stacked
        place = torch.device("cpu") if engine.zero_use_cpu_optimizer() else parameter.device
        return torch.zeros(0, device=place), torch.zeros(0, device=place)
    weight = mapping.get_hp_fragment().flatten()
    gradient = (
        mapping.get_lp_grad_fragment(vars(parameter)["_index_in_param_group"]).flatten().to(weight.device).float()
    )
    if gradient.numel() != weight.numel():
        gradient = gradient.narrow(0, mapping.lp_fragment_address.start, weight.numel())
    return weight, gradient
