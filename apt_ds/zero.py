"""What DeepSpeed is to the rest of the package. The only module that imports deepspeed.

An engine lives from one change of shapes to the next: `build`, train, `take_state`, `destroy`, operate on the
plain model, `build`, `put_state`. Facts about what an engine leaves behind are spelled out where they are mended.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, is_zero_param
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import (
    logger,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from apt_ds.config import UserError

Config = dict[str, Any]
Engine = deepspeed.DeepSpeedEngine
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


def init_distributed() -> None:
    """Join the process group the launcher has prepared; a process of its own where there is none."""
    logger.setLevel(logging.WARNING)
    # deepspeed calls collectives under names that newer torch renames
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    deepspeed.init_distributed(verbose=False)
    if device().type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # every process would take all cores otherwise
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))


def device() -> torch.device:
    """The device of this rank."""
    return torch.device(get_accelerator().current_device_name())


def check_config(config: Config, where: str) -> None:
    """Raise UserError for what DeepSpeed itself refuses, and for a dtype the device cannot train in."""
    try:
        deepspeed.DeepSpeedConfig(_with_bucket(config, 1))
    except (ValueError, TypeError, AssertionError, KeyError) as error:
        raise UserError(f"DeepSpeed config {where} is refused by DeepSpeed: {' '.join(str(error).split())}") from None
    accelerator = get_accelerator()
    if config["fp16"]["enabled"] and not accelerator.is_fp16_supported():
        raise UserError("--fp16: this device cannot train in float16; use --bf16 or fp32")
    if config["bf16"]["enabled"] and not accelerator.is_bf16_supported():
        raise UserError("--bf16: this device cannot train in bfloat16; use --fp16 or fp32")


def stage(config: Config) -> int:
    """ZeRO stage of a resolved configuration."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def shard_while_loading(config: Config) -> HfDeepSpeedConfig | None:
    """Make `from_pretrained` partition weights as it reads them (stage 3), for as long as the result lives."""
    return HfDeepSpeedConfig(copy.deepcopy(config)) if stage(config) == 3 else None


def build(model: nn.Module, config: Config) -> Engine:
    """An engine that trains the parameters of `model` that require a gradient. Collective."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    config = _with_bucket(config, max(1, sum(full_numel(p) for p in trainable)))
    return deepspeed.initialize(model=model, model_parameters=trainable, config=config)[0]


def _with_bucket(config: Config, numel: int) -> Config:
    """A copy whose reduce bucket, which is allocated in full, holds what is trained and no more."""
    config = copy.deepcopy(config)
    zero = config.setdefault("zero_optimization", {})
    if zero.get("reduce_bucket_size", "auto") == "auto":
        zero["reduce_bucket_size"] = numel
    return config


def settle(engine: Engine) -> None:
    """Wait for weights on their way and release those at hand (stage 3), before gathering past the engine.

    A forward pass without a backward one leaves prefetched weights in flight. Collective.
    """
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.empty_partition_cache()


def destroy(engine: Engine) -> nn.Module:
    """Take the engine off its model, leaving no hook, registry entry or reference behind; returns the model.

    `engine.destroy()` alone keeps every old engine alive: its forward hooks go on running, ZeRO-3 parameters
    and modules hold it, and the coordinator's cache holds the coordinator.
    """
    model = engine.module
    settle(engine)
    for name in ("module_forward_pre_hook", "module_forward_post_hook"):
        handle = getattr(engine, name)
        if handle is not None:
            handle.remove()
            setattr(engine, name, None)
    engine.destroy()
    for parameter in model.parameters():
        parameter.__dict__.pop("_z3_optimizer", None)
        parameter.grad = None
    for module in model.modules():
        for name in ("pre_bwd_fn", "post_bwd_fn", "_original_parameters"):
            module.__dict__.pop(name, None)
        if type(module._parameters) is not dict:
            module._parameters = dict(module._parameters)
    cached = PartitionedParameterCoordinator.__dict__["_PartitionedParameterCoordinator__params_to_release"]
    for cell in cached.__closure__ or ():
        if callable(getattr(cell.cell_contents, "cache_clear", None)):
            cell.cell_contents.cache_clear()
    parameter_offload.FWD_MODULE_STACK.clear()
    engine.optimizer = None
    engine.module = None
    return model


def collect() -> None:
    """Free what a destroyed engine left in reference cycles. Call once nothing else holds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_partitioned(model: nn.Module) -> bool:
    """Whether weights are spread over ranks (ZeRO-3)."""
    return any(is_zero_param(p) for p in model.parameters())


def full_numel(parameter: nn.Parameter) -> int:
    """Number of elements, partitioned or not."""
    return int(parameter.ds_numel) if is_zero_param(parameter) else parameter.numel()


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape, partitioned or not."""
    return torch.Size(parameter.ds_shape) if is_zero_param(parameter) else parameter.shape


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


def set_learning_rate(engine: Engine, value: float) -> None:
    """Use `value` from the next step on."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def loss_scale(engine: Engine) -> float:
    """What the engine multiplies the loss with (1 without fp16)."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0))


def step(engine: Engine) -> bool:
    """`engine.step()` at a boundary. False if it was skipped because of non-finite gradients. Collective."""
    if not engine.zero_optimization():
        # stage 0 in fp32 checks nothing; its gradients are already the same on all ranks
        finite = all(torch.isfinite(p.grad).all() for p in engine.module.parameters() if p.grad is not None)
        if not finite:
            engine.zero_grad()
            engine.micro_steps += 1
            engine.skipped_steps += 1
            return False
    engine.step()
    return bool(engine.was_step_applied())


@torch.no_grad()
def weight_times_gradient(engine: Engine, parameters: list[nn.Parameter]) -> Tensor:
    """sum |w * dL/dw| of each parameter, over this rank's shards only: sum it over ranks. fp32 [len(parameters)].

    Between the boundary's backward and its step. Touches no other rank, so it needs no collective of its own.
    """
    scale = 1.0 / loss_scale(engine)
    sums = [_local_weight_times_gradient(engine, p) * scale for p in parameters]
    return torch.stack(sums) if sums else torch.zeros(0, device=device())


def _local_weight_times_gradient(engine: Engine, parameter: nn.Parameter) -> Tensor:
    if is_zero_param(parameter):
        weight, gradient = safe_get_local_fp32_param(parameter), safe_get_local_grad(parameter)
        return (weight.flatten() * gradient.flatten()).abs().sum()
    if not engine.zero_optimization():
        return (parameter.data * parameter.grad).abs().sum().float() / engine.dp_world_size
    mapping = parameter._hp_mapping
    if mapping is None:
        return torch.zeros((), device=parameter.device)
    weight = mapping.get_hp_fragment().flatten()
    gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten().to(weight.device).float()
    if gradient.numel() != weight.numel():
        gradient = gradient.narrow(0, mapping.lp_fragment_address.start, weight.numel())
    return (weight * gradient).abs().sum().to(parameter.device)


@dataclass
class EngineState:
    """What a rebuild must carry over; full tensors on the host, the same on all ranks.

    tensors: parameter name to {"master", "exp_avg", "exp_avg_sq"} (moments absent before the first step).
    """

    tensors: dict[str, dict[str, Tensor]]
    adam_step: float
    scaler: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)


def take_state(engine: Engine, moments: bool = True) -> EngineState:
    """Read fp32 masters, Adam moments (unless `moments` is False), loss scale and counters. Collective."""
    adam_step = _adam_step(engine)
    keys = MOMENTS if moments and adam_step > 0 else ()
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            tensors[name] = {key: _read(engine, parameter, key).cpu() for key in ("master", *keys)}
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return EngineState(
        tensors,
        adam_step if keys else 0.0,
        {key: getattr(scaler, key) for key in SCALER if hasattr(scaler, key)},
        {key: getattr(engine, key) for key in COUNTERS},
    )


def put_state(engine: Engine, state: EngineState) -> None:
    """Write what `take_state` read, after its tensors were brought to the new shapes. Collective."""
    if state.adam_step > 0:
        _seed_moments(engine, state.adam_step)
    for name, parameter in engine.module.named_parameters():
        for key, value in state.tensors.get(name, {}).items():
            _write(engine, parameter, key, value.to(parameter.device))
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for key, value in state.scaler.items():
        setattr(scaler, key, value)
    for key, value in state.counters.items():
        setattr(engine, key, value)


def _flats(engine: Engine) -> list[Tensor]:
    """The tensors the inner optimizer updates."""
    if not engine.zero_optimization():
        return [p for group in engine.optimizer.param_groups for p in group["params"]]
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def _inner(engine: Engine) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization() else engine.optimizer


def _adam_step(engine: Engine) -> float:
    """Adam's step count; 0 before the first step. FusedAdam keeps it in the group, the others in the state."""
    inner = _inner(engine)
    state = inner.state.get(_flats(engine)[0], {})
    if "exp_avg" not in state:
        return 0.0
    return float(state["step"] if "step" in state else inner.param_groups[0]["step"])


def _seed_moments(engine: Engine, adam_step: float) -> None:
    """Adam makes its state at the first step; make it now, so that it can be written."""
    inner = _inner(engine)
    as_tensor = isinstance(inner, torch.optim.AdamW)
    for flat in _flats(engine):
        count = torch.tensor(adam_step) if as_tensor else int(adam_step)
        inner.state[flat] = {"step": count, **{key: torch.zeros_like(flat) for key in MOMENTS}}
    for group in inner.param_groups:
        if "step" in group:
            group["step"] = int(adam_step)
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _read(engine: Engine, parameter: nn.Parameter, key: str) -> Tensor:
    if not engine.zero_optimization():
        return (parameter.data if key == "master" else engine.optimizer.state[parameter][key]).clone()
    if key == "master":
        return safe_get_full_fp32_param(parameter).clone()
    return safe_get_full_optimizer_state(parameter, key).clone()


def _write(engine: Engine, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    if not engine.zero_optimization():
        target = parameter.data if key == "master" else engine.optimizer.state[parameter][key]
        target.copy_(value)
    elif is_zero_param(parameter):
        _write_shard(parameter, key, value)
    elif key == "master":
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _write_shard(parameter: nn.Parameter, key: str, value: Tensor) -> None:
    """Stage 3's own full setters read past the end where a parameter does not divide by the world: pad first."""
    part = parameter.ds_tensor.numel()
    group = parameter.ds_process_group
    flat = torch.nn.functional.pad(value.flatten(), (0, part * group.size() - value.numel()))
    own = flat.narrow(0, part * group.rank(), part)
    if key == "master":
        safe_set_local_fp32_param(parameter, own)
    else:
        safe_set_local_optimizer_state(parameter, own, key)
