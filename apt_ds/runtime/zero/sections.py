"""Which sections of a DeepSpeed file have an effect here. All others are mistakes.

The names come from the installed DeepSpeed: it parses a file that records what is looked up, and has typed fields for
the sections with a class of their own.
"""

from __future__ import annotations

import typing
from functools import cache
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from apt_ds.config.deepspeed_json import read_json
from apt_ds.config.errors import UserError
from apt_ds.config.nearest import nearest
from apt_ds.runtime import collectives, notices
from apt_ds.runtime.zero import monitor

SUPPORTED = (
    *("zero_optimization", "optimizer", "scheduler", "bf16", "fp16", "aio"),
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("communication_data_type", "steps_per_print", "wall_clock_breakdown", "memory_breakdown"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    *monitor.SECTIONS,
)
TYPED: dict[str, type[DeepSpeedConfigModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "fp16": DeepSpeedFP16Config,
    "bf16": DeepSpeedBF16Config,
    **monitor.SECTIONS,
}
# sections that DeepSpeed reads as plain dictionaries
PLAIN = {"optimizer": ("type", "params", "legacy_fusion"), "scheduler": ("type", "params")}
# without these checks DeepSpeed would apply gradients that are not finite, and a run could not tell
CHECKS = {"bf16": "check_grad_overflow", "zero_optimization": "compute_grad_norm"}
INSTEAD = {
    "activation_checkpointing": "use --gradient_checkpointing",
    "flops_profiler": "use --profile",
    "autotuning": "use --dry_run to estimate memory",
    **dict.fromkeys(("amp", "torch_autocast"), "use --bf16 or --fp16"),
    "bfloat16": "write 'bf16'",
    "elasticity": "use --per_device_train_batch_size and --gradient_accumulation_steps",
    "checkpoint": "use --save_steps and --resume_from_checkpoint",
    "compression_training": "use --sparsity and --base_bits",
    "weight_quantization": "use --base_bits",
    **dict.fromkeys(
        ("dataloader_drop_last", "data_efficiency", "curriculum_learning"), "leave the order of the data to the run"
    ),
}


def check_sections(path: str, trains: bool = True) -> None:
    """Check the names in a DeepSpeed file, and tell on the first rank which of its sections are not used.

    trains: the file is for a run, which has a schedule.

    Raises:
        UserError: no such file, not JSON, or a name that has no effect here. The message names the nearest right one.
    """
    config, where = read_json(path), f"DeepSpeed config {path}"
    for name, value in config.items():
        _check_section(name, value, where)
    for name, model in TYPED.items():
        _check_fields(config.get(name), model, name, where)
    for name, check in CHECKS.items():
        section = config.get(name)
        if isinstance(section, dict) and section.get(check, True) is not True:
            raise UserError(f"{where}: '{name}.{check}' is {section[check]!r}, only true is supported. Remove it")
    for name, keys in PLAIN.items():
        section = config.get(name)
        for key in section if isinstance(section, dict) else ():
            if key not in keys:
                raise UserError(f"{where}: '{name}' has an unknown '{key}'{_hint(key, keys)}")
    monitor.check_packages(config, where)
    if trains and "scheduler" in config and collectives.is_main():
        decides = "--lr_scheduler_type, --learning_rate and --warmup_ratio or --warmup_steps decide the schedule"
        notices.warn(f"{where}: 'scheduler' is not used: {decides}")


def _check_section(name: str, value: Any, where: str) -> None:
    """Raise UserError for a name at the top of the file that has no effect here."""
    if name in SUPPORTED:
        return
    defaults = known_sections()
    if name in defaults:
        scalar = isinstance(defaults[name], bool | int | float | str)
        if scalar and value == defaults[name]:
            return
        allowed = f", only {defaults[name]!r} is supported" if scalar else " is not supported here"
        given = f" is {value!r}" if scalar else ""
        raise UserError(f"{where}: '{name}'{given}{allowed}. Remove it{_instead(name)}")
    if name in names_of(DeepSpeedZeroConfig):
        raise UserError(f"{where}: '{name}' belongs inside 'zero_optimization'. Move it there")
    raise UserError(f"{where}: unknown section '{name}'{_hint(name, SUPPORTED)}")


def _check_fields(section: Any, model: type[DeepSpeedConfigModel], path: str, where: str) -> None:
    """Raise UserError for a name inside a section that DeepSpeed's class of it does not have."""
    for name, value in section.items() if isinstance(section, dict) else ():
        if name not in names_of(model):
            if name in SUPPORTED:
                raise UserError(f"{where}: '{name}' belongs at the top of the file, outside '{path}'. Move it there")
            raise UserError(f"{where}: '{path}' has an unknown '{name}'{_hint(name, names_of(model))}")
        field = names_of(model)[name]
        replaced = (model.model_fields[field].json_schema_extra or {}).get("new_param", "").partition(" ")[0]
        if replaced and model_of(model, replaced):
            # DeepSpeed would turn it into a section that nothing here has looked at
            raise UserError(f"{where}: '{path}.{name}' is outdated. Write '{path}.{replaced}' as a section instead")
        if inner := model_of(model, field):
            _check_fields(value, inner, f"{path}.{name}", where)


def names_of(model: type[DeepSpeedConfigModel]) -> dict[str, str]:
    """The field behind every name that a section's class reads."""
    return {name: field for field, spec in model.model_fields.items() for name in (field, spec.alias) if name}


def model_of(model: type[DeepSpeedConfigModel], field: str) -> type[DeepSpeedConfigModel] | None:
    """The class of a field that is a section itself."""
    annotation = model.model_fields[field].annotation if field in model.model_fields else None
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, DeepSpeedConfigModel):
            return part
    return None


@cache
def known_sections() -> dict[str, Any]:
    """Every name that DeepSpeed looks up at the top of a file, with the default it states."""
    asked = _Recorded({"train_batch_size": 1, "optimizer": {"type": "AdamW", "params": {}}})
    # DeepSpeed looks at the batch of all ranks only where there are several
    asked["train_batch_size"] = collectives.world_size()
    DeepSpeedConfig(asked)
    return asked.defaults


class _Recorded(dict[str, Any]):
    """A dictionary that remembers what it was asked for. Copies share that memory."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.defaults: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.defaults.setdefault(key, default)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.defaults.setdefault(key, None)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.defaults.setdefault(str(key), None)
        return super().__contains__(key)

    def keys(self) -> Any:
        return self


def _instead(name: str) -> str:
    return f" and {INSTEAD[name]}" if name in INSTEAD else ""


def _hint(name: str, names: Any) -> str:
    close = [f"'{each}'" for each in nearest(name, names)]
    return f" (did you mean {' or '.join(close)}?)" if close else ". Remove it"
