"""The state of a plain torch optimizer across a change of shapes, in place.

The Trainer, its scheduler and the accelerator hold the optimizer, so it must stay the same object with the same groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apt_ds.config.errors import UserError
from apt_ds.runtime import zero


@dataclass
class OptimizerState:
    """What an optimizer holds of each parameter, by the parameter's name.

    Attributes:
        groups: the names of the parameters of each group.
        shaped: tensors with the parameter's shape. They follow a cut.
        others: counts.
    """

    groups: list[list[str]]
    shaped: dict[str, dict[str, Tensor]]
    others: dict[str, dict[str, object]]

    def for_surgery(self) -> zero.EngineState:
        """The part that `surgery.apply_plan` brings to new shapes, shared with this object."""
        return zero.EngineState(self.shaped, 0.0)


def plain(optimizer: object) -> Optimizer:
    """The torch optimizer below accelerate's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, Optimizer)
    return inner


def check(optimizer: Optimizer, model: nn.Module) -> None:
    """Check that the optimizer trains what the model trains, in a form that can follow a cut.

    Raises:
        UserError: it was made before the adapters, or keeps a state that has not the parameter's shape.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(id(p) not in trained for p in model.parameters() if p.requires_grad):
        raise UserError(
            "the optimizer does not train the adapters: it was made before AptCallback.attach(model). Call attach "
            "first, or let the Trainer make the optimizer"
        )
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            follows = isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
            if isinstance(value, Tensor) and value.numel() > 1 and not follows:
                raise UserError(
                    f"the optimizer {type(optimizer).__name__} keeps {key!r} in another form than the weight's: a cut "
                    "cannot follow. Give the Trainer optim='adamw_torch'"
                )


def take(optimizer: Optimizer, model: nn.Module) -> OptimizerState:
    """The state by names. It shares the tensors."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    shaped: dict[str, dict[str, Tensor]] = {name: {} for group in groups for name in group}
    others: dict[str, dict[str, object]] = {name: {} for name in shaped}
    for parameter, entry in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                shaped[name][key] = value
            else:
                others[name][key] = value
    return OptimizerState(groups, shaped, others)


@torch.no_grad()
def put(optimizer: Optimizer, model: nn.Module, state: OptimizerState, carry: bool) -> None:
    """Make the optimizer train the present parameters.

    Args:
        optimizer: keeps its identity, its groups and their options.
        model: the model after the plan.
        state: what `take` returned, after the plan has changed its tensors.
        carry: whether moments and counts go on. False: they start again.
    """
    present = dict(model.named_parameters())
    optimizer.state.clear()
    for group, names in zip(optimizer.param_groups, state.groups, strict=True):
        # a sublayer that has lost all its blocks has no adapter any more
        remaining = [name for name in names if name in present]
        group["params"] = [present[name] for name in remaining]
        for name in remaining if carry else ():
            entry = state.others[name] | state.shaped[name]
            if entry:
                optimizer.state[present[name]] = entry


def weight_times_gradient(parameter: nn.Parameter) -> Tensor:
    """Sum |w dL/dw|, fp32 []. Zero where no gradient came."""
    if parameter.grad is None:
        return torch.zeros((), device=parameter.device)
    return (parameter.detach().float() * parameter.grad.float()).abs().sum()


def loss_scale(optimizer: Any) -> float:
    """What the loss of the last step was multiplied with: by accelerate's scaler, or by DeepSpeed's optimizer."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is not None:
        return float(scaler.get_scale())
    return float(getattr(getattr(optimizer, "optimizer", None), "loss_scale", 1.0))
