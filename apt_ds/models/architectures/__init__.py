"""The registry of families: one file and one line here for each. See `spec.py` for what a family states."""

from __future__ import annotations

from transformers import AutoConfig, PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import bert, llama, mistral, mixtral, olmoe, qwen3_moe, roberta, t5
from apt_ds.models.architectures.spec import ADAPTIVE_PREFIX, AUTO_CLASSES, Architecture
from apt_ds.models.blocks import Anatomy

REGISTRY: dict[str, Architecture] = {}


def register(spec: Architecture) -> None:
    """Make a family known. Its classes with sizes by layer then load without the copy in an exported folder.

    Raises:
        ValueError: another spec has the model type.
    """
    if REGISTRY.setdefault(spec.model_type, spec) is not spec:
        raise ValueError(f"the model type {spec.model_type!r} is registered already")
    for task, own_class in spec.own_classes.items():
        config_class = own_class.config_class
        assert config_class is not None, f"{own_class.__name__} names no config_class"
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AUTO_CLASSES[task].register(config_class, own_class, exist_ok=True)


register(llama.ARCHITECTURE)
register(mistral.ARCHITECTURE)
register(mixtral.ARCHITECTURE)
register(qwen3_moe.ARCHITECTURE)
register(olmoe.ARCHITECTURE)
register(bert.ARCHITECTURE)
register(roberta.ARCHITECTURE)
register(t5.ARCHITECTURE)


def find_architecture(config: PretrainedConfig) -> Architecture | None:
    """The spec of a model's family, with uniform sizes or sizes by layer. None: the family is unknown."""
    return REGISTRY.get(config.model_type.removeprefix(ADAPTIVE_PREFIX))


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The spec of a model's family, with uniform sizes or sizes by layer.

    Raises:
        UserError: the family is unknown. The message lists those that are known.
    """
    spec = find_architecture(config)
    if spec is None:
        raise UserError(
            f"architecture '{config.model_type}' is not supported; supported: {', '.join(sorted(REGISTRY))}"
        )
    return spec


def anatomy_of(config: PretrainedConfig, task: str = LANGUAGE_MODEL) -> Anatomy:
    """The table of a model's blocks, from its configuration alone.

    Raises:
        UserError: the family does not answer with the task type. The message lists those that do.
    """
    known = sorted(name for name, spec in REGISTRY.items() if task in spec.stock_classes)
    if config.model_type not in known:
        raise UserError(
            f"architecture '{config.model_type}' is not supported as a {task}; supported: {', '.join(known)}"
        )
    return REGISTRY[config.model_type].blocks(config, task)
