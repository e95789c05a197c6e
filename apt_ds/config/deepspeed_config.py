"""A DeepSpeed JSON file, its "auto" values filled from the run, its contradictions named."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from apt_ds.config import schedules
from apt_ds.config.deepspeed_json import read_json
from apt_ds.config.errors import UserError
from apt_ds.config.nearest import suggest
from apt_ds.config.run_config import RunConfig

Config = dict[str, Any]
# "auto" stays until an engine is built, whose model decides
BY_MODEL = ("zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size")
SCHEDULERS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
ADAMW = ("lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode", "fp32_optimizer_states")


def load_config(run: RunConfig, world_size: int, hidden_size: int) -> Config:
    """Read `run.deepspeed` and resolve it for `world_size` processes.

    Every "auto" takes the run's value. A fixed value that differs from the run's flag is an error.

    Raises:
        UserError: no such file, not JSON, or a contradiction.
    """
    config = read_json(run.distributed.deepspeed)
    where = f"DeepSpeed config {run.distributed.deepspeed}"
    _check_scheduler(config.pop("scheduler", {}), run, where)
    for section in ("zero_optimization", "optimizer"):
        if not isinstance(config.get(section, {}), dict):
            raise UserError(f"{where}: '{section}' must be an object, found {config[section]!r}")
    zero = config.setdefault("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise UserError(f"{where}: zero_optimization.stage is {stage!r}. Allowed: 0, 1, 2, 3")
    for section in ("offload_optimizer", "offload_param"):
        inner = zero.get(section)
        if inner is None or (isinstance(inner, dict) and inner.get("device", "none") == "none"):
            # as many examples have it: such a section offloads nothing
            zero.pop(section, None)
    if stage == 0 and (run.optim.bf16 or run.optim.fp16):
        raise UserError(f"{where}: ZeRO stage 0 trains in fp32 only here. Use stage 1 or drop --bf16/--fp16")
    micro, accumulation = run.optim.per_device_train_batch_size, run.optim.gradient_accumulation_steps
    fill = _Filler(config, where)
    fill("train_micro_batch_size_per_gpu", micro, "--per_device_train_batch_size")
    fill("gradient_accumulation_steps", accumulation, "--gradient_accumulation_steps")
    fill("train_batch_size", run.optim.global_batch(world_size), "processes x batch size x accumulation")
    fill("gradient_clipping", run.optim.max_grad_norm, "--max_grad_norm")
    fill("bf16.enabled", run.optim.bf16, "--bf16")
    fill("fp16.enabled", run.optim.fp16, "--fp16")
    _optimizer(config, run, fill, where)
    _offload(zero, where)
    fill("zero_optimization.stage3_param_persistence_threshold", 10 * hidden_size, None)
    # printing is the run's own business
    config["steps_per_print"] = 10**9
    config["wall_clock_breakdown"] = False
    left = [path for path in _autos(config) if path not in BY_MODEL]
    if left:
        raise UserError(f'{where}: nothing decides the value of {", ".join(left)}. Replace "auto" by a number')
    return config


def _optimizer(config: Config, run: RunConfig, fill: _Filler, where: str) -> None:
    offload = "offload_optimizer" in config["zero_optimization"]
    if offload and run.optim.optimizer != "adamw_torch":
        raise UserError(
            f"{where}: offload_optimizer requires --optim adamw_torch, which then updates on the host. Remove "
            f"that section, since --optim {run.optim.optimizer} needs a quarter of its memory, or leave --optim out"
        )
    optimizer = config.setdefault("optimizer", {"type": "AdamW", "params": {}})
    if optimizer.get("type") != "AdamW":
        raise UserError(f"{where}: optimizer.type is {optimizer.get('type')!r}. Allowed: 'AdamW'")
    if not isinstance(optimizer.get("params", {}), dict):
        raise UserError(f"{where}: optimizer.params must be an object, found {optimizer['params']!r}")
    unknown = sorted(set(optimizer.get("params", {})) - set(ADAMW))
    if unknown:
        raise UserError(f"{where}: optimizer.params has unknown {', '.join(unknown)}. Known: {', '.join(ADAMW)}")
    if not offload:
        # torch's AdamW needs no compiler. Offload needs DeepSpeed's own
        optimizer.setdefault("params", {}).setdefault("torch_adam", True)
    fill("optimizer.params.lr", run.optim.learning_rate, "--learning_rate")
    fill("optimizer.params.betas", [run.optim.adam_beta1, run.optim.adam_beta2], "--adam_beta1/2")
    fill("optimizer.params.eps", run.optim.adam_epsilon, "--adam_epsilon")
    fill("optimizer.params.weight_decay", run.optim.weight_decay, "--weight_decay")
    if run.optim.optimizer != "adamw_torch":
        # the run makes it
        del config["optimizer"]
        config["zero_allow_untested_optimizer"] = True


def _check_scheduler(section: Any, run: RunConfig, where: str) -> None:
    """Raise UserError where a schedule in the file has numbers other than the run's, which decide.

    The schedule must outlive rebuilds of the engine, so that DeepSpeed never gets one.
    """
    if not isinstance(section, dict) or not isinstance(section.get("params", {}), dict):
        raise UserError(f"{where}: 'scheduler' must be an object with a 'type' and an object 'params'")
    if section.get("type", "WarmupLR") not in SCHEDULERS:
        raise UserError(
            f"{where}: scheduler.type is {section['type']!r}. Allowed: {', '.join(SCHEDULERS)}. Remove the section and "
            "use --lr_scheduler_type"
        )
    total = run.optim.max_steps if run.optim.max_steps > 0 else None
    by_ratio = schedules.warmup_steps(total, run.optim.warmup_ratio, 0) if total else None
    flags: dict[str, tuple[Any, str]] = {
        "warmup_max_lr": (run.optim.learning_rate, "--learning_rate"),
        "warmup_num_steps": (run.optim.warmup_steps, "--warmup_steps")
        if run.optim.warmup_steps
        else (by_ratio, "--warmup_ratio"),
        "total_num_steps": (total, "--max_steps"),
        "warmup_type": ("linear", "--lr_scheduler_type"),
        "last_batch_iteration": (-1, "--resume_from_checkpoint"),
        **dict.fromkeys(("warmup_min_lr", "warmup_min_ratio", "cos_min_ratio"), (0, "--lr_scheduler_type")),
    }
    for name, given in section.get("params", {}).items():
        if name not in flags:
            raise UserError(f"{where}: scheduler.params has an unknown '{name}'{suggest(name, flags)}")
        value, flag = flags[name]
        if given not in ("auto", value):
            says = "does not say how many" if value is None else f"means {value!r}"
            raise UserError(
                f'{where}: scheduler.params.{name} is {given!r} but {flag} {says}. Set it to "auto" or make them equal'
            )


def _offload(zero: Config, where: str) -> None:
    """Check that a folder for moments can be written. Weights on a disk are refused: scores and cuts read them."""
    if isinstance(zero.get("offload_param"), dict) and zero["offload_param"].get("device") == "nvme":
        raise UserError(
            f"{where}: zero_optimization.offload_param.device 'nvme' is not supported, since weights are read and cut "
            "where they lie. Use 'cpu', and nvme for offload_optimizer alone"
        )
    section = zero.get("offload_optimizer", {})
    if not isinstance(section, dict) or section.get("device") != "nvme":
        return
    folder = str(section.get("nvme_path", ""))
    if not folder or not Path(folder).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{where}: zero_optimization.offload_optimizer.nvme_path {folder!r} is not a folder that can be written on "
            f"{socket.gethostname()}. Make it, or name another"
        )


class _Filler:
    """Fills "auto" at a dotted path. UserError where a fixed value contradicts the run."""

    def __init__(self, config: Config, where: str) -> None:
        self.config, self.where = config, where

    def __call__(self, path: str, value: Any, flag: str | None) -> None:
        *parents, key = path.split(".")
        node = self.config
        for parent in parents:
            # without a flag there is nothing to add: fill only what the file asks for
            node = node.setdefault(parent, {}) if flag else node.get(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{self.where}: '{parent}' must be an object, found {node!r}")
        if node.get(key, "auto" if flag else None) == "auto":
            node[key] = value
        elif flag and node[key] != value:
            raise UserError(
                f'{self.where}: {path} is {node[key]!r} but {flag} says {value!r}. Set it to "auto" or make them equal'
            )


def _autos(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        return [p for key, value in node.items() for p in _autos(value, f"{path}.{key}".lstrip("."))]
    return [path] if node == "auto" else []
