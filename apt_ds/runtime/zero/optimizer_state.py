"""Masters and moments of an engine across a rebuild.

Stage 3 shards every parameter, stages 1 and 2 a flat buffer of them all, stage 0 nothing. Here they look alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from apt_ds.runtime import collectives
from apt_ds.runtime.zero import adam8bit
from apt_ds.runtime.zero.engine import Engine
from apt_ds.runtime.zero.partitioned import PartitionedParameter, full_shape, is_zero_param

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
Sink = Callable[[str, dict[str, Tensor]], None]
COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


@dataclass
class EngineState:
    """What a rebuild must carry over. Full tensors on the host, the same on all ranks.

    Attributes:
        tensors: parameter name to {"master", "exp_avg", "exp_avg_sq"}. Moments are absent before the first step.
        adam_step: steps that Adam has taken.
        scaler: state of the loss scaler.
        counters: what the engine counts, by name.
        blocks: moments of 8 bits on this rank, "number of the flat tensor:part" to its tensor. They are put back only
            into an engine of the same `layout`. Any other quantizes the moments in `tensors`.
        layout: hash of what decides which moments share a block of 8 bits.
    """

    tensors: dict[str, dict[str, Tensor]]
    adam_step: float
    scaler: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)
    layout: str = ""


def take_state(engine: Engine, moments: bool = True, sink: Sink | None = None) -> EngineState:
    """Read fp32 masters, Adam moments, loss scale and counters. Collective.

    Args:
        engine: the engine.
        moments: False leaves the moments out.
        sink: takes each parameter's tensors, one parameter after the other. The state then has none. For what may be as
            large as the model.
    """
    adam_step = _adam_step(engine)
    keys = MOMENTS if moments and adam_step > 0 else ()
    tensors: dict[str, dict[str, Tensor]] = {}
    eight_bit = bool(keys) and adam8bit.is_ours(_inner(engine))
    if eight_bit:
        _each_flat(engine, adam8bit.unpack)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            entry = {key: _read(engine, parameter, key).cpu() for key in ("master", *keys)}
            if sink is None:
                tensors[name] = entry
            else:
                sink(name, entry)
    blocks: dict[str, Tensor] = {}
    if eight_bit:
        _each_flat(engine, adam8bit.drop)
        for number, flat in enumerate(_flats(engine)):
            blocks |= {f"{number}:{part}": value for part, value in adam8bit.raw(_inner(engine), flat).items()}
    counters = {key: getattr(engine, key) for key in COUNTERS}
    return EngineState(tensors, adam_step if keys else 0.0, _scaler(engine), counters, blocks, _layout(engine))


def unstepped_state(engine: Engine) -> EngineState:
    """The state of an engine with this one's loss scale that has not taken a step. Trained weights are left out."""
    return EngineState({}, 0.0, _scaler(engine), dict.fromkeys(COUNTERS, 0))


def _scaler(engine: Engine) -> dict[str, Any]:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: getattr(scaler, key) for key in SCALER if hasattr(scaler, key)}


def put_state(engine: Engine, state: EngineState) -> None:
    """Write what `take_state` read, after its tensors were brought to the new shapes. Collective."""
    if state.adam_step > 0:
        _seed_moments(engine, state.adam_step)
    for name, parameter in engine.module.named_parameters():
        for key, value in state.tensors.get(name, {}).items():
            _write(engine, parameter, key, value.to(parameter.device))
    if state.adam_step > 0 and adam8bit.is_ours(_inner(engine)):
        blocks = state.blocks if state.layout == _layout(engine) else {}
        _pack_moments(engine, blocks)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for key, number in state.scaler.items():
        # stage 0, in fp32 only, has none
        if hasattr(scaler, key):
            setattr(scaler, key, number)
    for key, count in state.counters.items():
        setattr(engine, key, count)


def _flats(engine: Engine) -> list[Tensor]:
    """The tensors the inner optimizer updates."""
    if not engine.zero_optimization():
        return [p for group in engine.optimizer.param_groups for p in group["params"]]
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def _inner(engine: Engine) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization() else engine.optimizer


def _layout(engine: Engine) -> str:
    """A hash of what decides which moments share a block: ZeRO stage, ranks, and the shapes of what is trained."""
    shapes = [(n, tuple(full_shape(p))) for n, p in engine.module.named_parameters() if p.requires_grad]
    return collectives.digest(engine.zero_optimization_stage(), engine.dp_world_size, shapes)


def _each_flat(engine: Engine, change: Callable[[torch.optim.Optimizer, Tensor], None]) -> None:
    """Change every flat tensor's state, and have stages 1 and 2 look at it again."""
    for flat in _flats(engine):
        change(_inner(engine), flat)
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _pack_moments(engine: Engine, blocks: dict[str, Tensor]) -> None:
    places = {id(flat): f"{number}:" for number, flat in enumerate(_flats(engine))}

    def change(inner: torch.optim.Optimizer, flat: Tensor) -> None:
        place = places[id(flat)]
        own = {key.removeprefix(place): value for key, value in blocks.items() if key.startswith(place)}
        adam8bit.pack(inner, flat, own)

    _each_flat(engine, change)


def _adam_step(engine: Engine) -> float:
    """Adam's step count. 0 before the first step. FusedAdam keeps it in the group, the others in the state."""
    inner = _inner(engine)
    state = inner.state.get(_flats(engine)[0], {})
    if "exp_avg" not in state and "state1" not in state:
        return 0.0
    return float(state["step"] if "step" in state else inner.param_groups[0]["step"])


def _seed_moments(engine: Engine, adam_step: float) -> None:
    """Make Adam's state now, so that it can be written. Adam makes it at the first step."""
    inner = _inner(engine)
    as_tensor = isinstance(inner, torch.optim.AdamW)
    for flat in _flats(engine):
        count: Tensor | int = torch.tensor(adam_step) if as_tensor else int(adam_step)
        # those of 8 bits are in fp32 on the host only, where there is room, until they are packed
        place = "cpu" if adam8bit.is_ours(inner) else flat.device
        inner.state[flat] = {"step": count, **{key: torch.zeros_like(flat, device=place) for key in MOMENTS}}
    for group in inner.param_groups:
        if "step" in group:
            group["step"] = int(adam_step)
    if isinstance(inner, DeepSpeedCPUAdam):
        _replay_powers(inner, int(adam_step))
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _replay_powers(inner: DeepSpeedCPUAdam, adam_step: int) -> None:
    """CPUAdam multiplies beta^t up step by step, in float: count up, or they would be those of pow(), a bit off."""
    nothing = [torch.zeros(1) for _ in range(4)]
    for group in inner.param_groups[:1]:
        fixed = (*group["betas"], group["eps"], group["weight_decay"], group["bias_correction"])
        for count in range(1, adam_step + 1):
            inner.ds_opt_adam.adam_update(inner.opt_id, count, 0.0, *fixed, *nothing)


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


def _write_shard(parameter: PartitionedParameter, key: str, value: Tensor) -> None:
    """Stage 3's own full setters read past the end where a parameter does not divide by the world: pad first."""
    part = parameter.ds_tensor.numel()
    group = parameter.ds_process_group
    flat = torch.nn.functional.pad(value.flatten(), (0, part * group.size() - value.numel()))
    own = flat.narrow(0, part * group.rank(), part)
    if key == "master":
        safe_set_local_fp32_param(parameter, own)
    else:
        safe_set_local_optimizer_state(parameter, own, key)
