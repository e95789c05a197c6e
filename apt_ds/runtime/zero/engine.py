"""An engine from `build` to `destroy`.

An engine lives from one change of shapes to the next: `build`, train, `take_state`, `destroy`, operate on the
plain model, `build`, `put_state`. Facts about what an engine leaves behind are spelled out where they are mended.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfigError
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import nn
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from apt_ds.config.errors import UserError
from apt_ds.runtime.memory import free_pinned, trim_heap
from apt_ds.runtime.profiler import timed
from apt_ds.runtime.zero import muon, whole_layers
from apt_ds.runtime.zero.adam8bit import Maker
from apt_ds.runtime.zero.monitor import Monitor, without_monitors
from apt_ds.runtime.zero.partitioned import full_numel
from apt_ds.runtime.zero.profiler_hooks import mark

Config = dict[str, Any]
LARGEST_BUCKET = 500_000_000  # DeepSpeed's own default
# DeepSpeed has no types: to a type checker this is Any
Engine: TypeAlias = deepspeed.DeepSpeedEngine
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()  # built and not destroyed


def device() -> torch.device:
    """The device of this rank."""
    return torch.device(get_accelerator().current_device_name())


def check_config(config: Config, where: str) -> None:
    """Raise UserError for what DeepSpeed itself refuses, and for a dtype the device cannot train in."""
    try:
        deepspeed.DeepSpeedConfig(_with_buckets(config, nn.Module()))
    except (ValueError, TypeError, AssertionError, KeyError, AttributeError, DeepSpeedConfigError) as error:
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


@contextmanager
def whole_while_making() -> Iterator[None]:
    """Inside, transformers makes whole models, also where it would shard them (`shard_while_loading`)."""
    config = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config


def build(
    model: nn.Module,
    config: Config,
    make_optimizer: Maker | None = None,
    monitor: Monitor | None = None,
    gather_layers: bool = True,
) -> Engine:
    """An engine that trains the parameters of `model` that require a gradient. Collective.

    Args:
        model: the model.
        config: the DeepSpeed configuration.
        make_optimizer: makes the optimizer. None: the one that `config` names.
        monitor: `engine.monitor` of the engine before. None: a new one.
        gather_layers: whether stage 3 gathers a transformer layer at once. False: each module by itself, as DeepSpeed
            does.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if "offload_optimizer" in config.get("zero_optimization", {}):
        describe_cpu_once()
    muon.import_uncompiled()
    if monitor is not None:
        config = without_monitors(config)
    config = _with_buckets(config, model)
    first_layers = whole_layers.mark(model) if stage(config) == 3 and gather_layers else []
    engine = deepspeed.initialize(model=model, optimizer=make_optimizer, model_parameters=trainable, config=config)[0]
    _ENGINES.add(engine)
    engine.monitor = monitor or Monitor(engine.monitor)
    engine.first_layers = first_layers
    mark(engine)
    return engine


@functools.cache
def describe_cpu_once() -> None:
    """Let all of DeepSpeed's CPU optimizers share one description of the CPU.

    Each asks cpuinfo for it, which starts a process of a second. Every rebuild makes an optimizer.
    """
    cpuinfo: Any = importlib.import_module("cpuinfo")
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)


def inference_config(zero_section: Config, precision: Config) -> Config:
    """A configuration for forward passes alone.

    Args:
        zero_section: `zero_optimization` of a run's file. The result leaves out values that are "auto" and the
            optimizer's offload.
        precision: The sections `bf16` and `fp16`.
    """
    section = {key: value for key, value in zero_section.items() if value != "auto" and key != "offload_optimizer"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": section,
        **precision,
        "steps_per_print": 10**9,
    }


def build_for_inference(model: nn.Module, config: Config) -> Engine:
    """An engine that runs a sharded model (stage 3) and trains nothing: no optimizer, no gradients. Collective."""
    model.requires_grad_(False)
    engine = deepspeed.initialize(model=model, config=_with_buckets(without_monitors(config), model))[0]
    _ENGINES.add(engine)
    return engine


def _with_buckets(config: Config, model: nn.Module) -> Config:
    """A copy that decides the buckets which the file leaves to the model.

    The bucket of gradients is allocated in full. It holds what is trained and no more. The bucket of prefetched
    weights holds the largest transformer layer. DeepSpeed prefetches once for each layer that it gathers at once, so
    that a smaller bucket would leave more of each layer to be gathered on demand.
    """
    config = copy.deepcopy(config)
    zero = config.setdefault("zero_optimization", {})
    if zero.get("reduce_bucket_size", "auto") == "auto":
        trained = sum(full_numel(p) for p in model.parameters() if p.requires_grad)
        zero["reduce_bucket_size"] = min(max(1, trained), LARGEST_BUCKET)
    if zero.get("stage3_prefetch_bucket_size") == "auto":
        # without transformer layers DeepSpeed's default holds
        del zero["stage3_prefetch_bucket_size"]
        layers = [layer for stack in whole_layers.layer_stacks(model) for _, layer in stack]
        if layers:
            zero["stage3_prefetch_bucket_size"] = max(sum(full_numel(p) for p in each.parameters()) for each in layers)
    return config


def release_gathered(engine: Engine) -> None:
    """Wait for weights on their way and release those at hand (stage 3), before gathering past the engine.

    A forward pass without a backward one leaves prefetched weights in flight. Collective.
    """
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.empty_partition_cache()


def destroy(engine: Engine) -> nn.Module:
    """Take the engine off its model, leaving no hook, registry entry or reference behind. Returns the model.

    `engine.destroy()` alone keeps every old engine alive: its forward hooks go on running, ZeRO-3 parameters
    and modules hold it, and the coordinator's cache holds the coordinator.
    """
    _ENGINES.discard(engine)
    model = engine.module
    release_gathered(engine)
    for name in ("module_forward_pre_hook", "module_forward_post_hook"):
        handle = getattr(engine, name)
        if handle is not None:
            handle.remove()
            setattr(engine, name, None)
    engine.destroy()
    for handle in getattr(engine, "first_layers", []):
        handle.remove()
    for parameter in model.parameters():
        parameter.__dict__.pop("_z3_optimizer", None)
        parameter.__dict__.pop("ds_z3_leaf_module", None)
        parameter.grad = None
    for module in model.modules():
        # a weight that a parent's forward looks at (T5's wo) is kept as the parent's, and would be gathered after a cut
        for name in ("pre_bwd_fn", "post_bwd_fn", "_original_parameters", "_external_params"):
            module.__dict__.pop(name, None)
        if type(module._parameters) is not dict:
            module._parameters = dict(module._parameters)
    forget_coordinators()
    engine.optimizer = None
    engine.module = None
    return model


@contextmanager
def destroying_engines() -> Iterator[None]:
    """Destroy the engines that are built inside and left. Only for a process alone: others could be elsewhere."""
    before = set(_ENGINES)
    try:
        yield
    finally:
        for engine in set(_ENGINES) - before:
            destroy(engine)


def forget_coordinators() -> None:
    """Empty the caches of DeepSpeed's modules that refer to parameters and modules of engines that were destroyed."""
    cached = PartitionedParameterCoordinator.__dict__["_PartitionedParameterCoordinator__params_to_release"]
    for cell in cached.__closure__ or ():
        if callable(getattr(cell.cell_contents, "cache_clear", None)):
            cell.cell_contents.cache_clear()
    parameter_offload.FWD_MODULE_STACK.clear()


def free_memory() -> None:
    """Free what a destroyed engine left in reference cycles, for others too. Call once nothing else holds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        free_pinned()
    trim_heap()


def unwrap(model: nn.Module) -> nn.Module:
    """The model that an engine is on. A plain model is returned as it is."""
    return model.module if isinstance(model, deepspeed.DeepSpeedEngine) else model


def set_learning_rate(engine: Engine, value: float) -> None:
    """Use `value` from the next step on."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def loss_scale(engine: Engine) -> float:
    """What the engine multiplies the loss with (1 without fp16)."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0))


@timed("optimizer")
def step(engine: Engine) -> bool:
    """`engine.step()` at a boundary. False if it was skipped because of non-finite gradients. Collective."""
    if not engine.zero_optimization():
        # stage 0 in fp32 checks nothing; its gradients are already the same on all ranks
        finite = [torch.isfinite(p.grad).all() for p in engine.module.parameters() if p.grad is not None]
        if finite and not torch.stack(finite).all():
            engine.zero_grad()
            engine.micro_steps += 1
            engine.skipped_steps += 1
            return False
    engine.step()
    return bool(engine.was_step_applied())
