"""The registry of families: one file and one line here for each. See `spec.py` for what a family states."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import AutoConfig, PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.nearest import nearest
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import (
    bert,
    deberta_v2,
    distilbert,
    electra,
    gemma2,
    gemma3_text,
    granite,
    llama,
    ministral,
    mistral,
    mixtral,
    modernbert,
    olmo2,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    t5,
)
from apt_ds.models.architectures.spec import ADAPTIVE_PREFIX, AUTO_CLASSES, Architecture
from apt_ds.models.blocks import Anatomy

REGISTRY: dict[str, Architecture] = {}
GUIDE = "apt_ds/models/README.md shows how to add a family"


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
register(ministral.ARCHITECTURE)
register(qwen2.ARCHITECTURE)
register(qwen3.ARCHITECTURE)
register(smollm3.ARCHITECTURE)
register(granite.ARCHITECTURE)
register(gemma2.ARCHITECTURE)
register(gemma3_text.ARCHITECTURE)
register(olmo2.ARCHITECTURE)
register(phi3.ARCHITECTURE)
register(mixtral.ARCHITECTURE)
register(qwen3_moe.ARCHITECTURE)
register(olmoe.ARCHITECTURE)
register(bert.ARCHITECTURE)
register(roberta.ARCHITECTURE)
register(t5.ARCHITECTURE)
register(distilbert.ARCHITECTURE)
register(electra.ARCHITECTURE)
register(modernbert.ARCHITECTURE)
register(deberta_v2.ARCHITECTURE)


def find_architecture(config: PretrainedConfig) -> Architecture | None:
    """The spec of a model's family, with uniform sizes or sizes by layer. None: the family is unknown."""
    return REGISTRY.get(config.model_type.removeprefix(ADAPTIVE_PREFIX))


def language_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the language model alone, where a checkpoint has parts for images too."""
    if any(spec.multimodal == config.model_type for spec in REGISTRY.values()):
        return config.text_config
    return config


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The spec of a model's family, with uniform sizes or sizes by layer.

    Raises:
        UserError: the family is unknown. The message lists those that are known.
    """
    spec = find_architecture(config)
    if spec is not None:
        return spec
    text_config = getattr(config, "text_config", None)
    raise unsupported(config.model_type, REGISTRY) if text_config is None else more_than_text(config, text_config)


def anatomy_of(config: PretrainedConfig, task: str = LANGUAGE_MODEL) -> Anatomy:
    """The table of a model's blocks, from its configuration alone.

    Raises:
        UserError: the family does not answer with the task type. The message lists those that do.
    """
    known = [name for name, spec in REGISTRY.items() if task in spec.stock_classes]
    if config.model_type not in known:
        raise unsupported(config.model_type, known, f" as a {task}")
    return REGISTRY[config.model_type].blocks(config, task)


def unsupported(model_type: str, known: Iterable[str], purpose: str = "") -> UserError:
    """The error for a family without a spec.

    Args:
        model_type: the model type.
        known: the model types that could be used.
        purpose: what the family would be used for, with a leading space.
    """
    names = sorted(known)
    close = nearest(model_type, names)
    hint = f"; the nearest is {close[0]}" if close else ""
    listed = ", ".join(names)
    return UserError(f"architecture '{model_type}' is not supported{purpose}; supported: {listed}{hint}. {GUIDE}")


def more_than_text(config: PretrainedConfig, text_config: PretrainedConfig) -> UserError:
    """The error for a family that reads images or sound too. text_config: the configuration of its text model."""
    inner = text_config.model_type
    if inner in REGISTRY:
        advice = f"Its text model is a {inner!r}, which is supported: save that model alone and give its folder"
    else:
        advice = f"Its text model is a {inner!r}, which is not supported either. {GUIDE}"
    return UserError(f"architecture '{config.model_type}' is not supported: it reads more than text. {advice}")
