"""What a run starts from: configuration, tokenizer and blocks of a model whose weights are not read yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import CLASSIFICATION, INSTRUCTIONS, LANGUAGE_MODEL
from apt_ds.data.tokenizer_checks import check_tokenizer
from apt_ds.models import pretrained
from apt_ds.models.architectures import GUIDE, REGISTRY, anatomy_of, architecture_of, language_config
from apt_ds.models.architectures.spec import ADAPTIVE_PREFIX
from apt_ds.models.blocks import Anatomy
from apt_ds.models.builtin_models import NAMES, source_of
from apt_ds.models.model_folder import check_files, check_head, check_sizes, read_part


@dataclass
class Base:
    """What a run starts from.

    Attributes:
        source: the folder or hub name that `from_pretrained` reads.
        config: the configuration of the model.
        tokenizer: its tokenizer.
        anatomy: its blocks.
        task_type: a constant of `config/tasks.py`.
        random: there are no weights to read. They are drawn, for measurements.
        dtype: the dtype of the stored weights, None if unknown.
    """

    source: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    task_type: str = LANGUAGE_MODEL
    random: bool = False
    dtype: torch.dtype | None = None


def find_base(name: str, task: str = INSTRUCTIONS, labels: tuple[str, ...] = (), trust: bool = False) -> Base:
    """Read the configuration and the tokenizer of a model. Collective.

    Args:
        name: a folder, a hub name or a name of `builtin_models.py`.
        task: the value of `--task`.
        labels: the names of the classes, for a classification task.
        trust: code of the folder may run, for its tokenizer. The model is always of a class of transformers.

    Raises:
        UserError: there is no model or no tokenizer, or the family is not supported for this task.
    """
    source, where = source_of(name), f"--model_name_or_path {name!r}"
    advice = f"give a folder made by save_pretrained, a hub name, or {NAMES}"
    check_files(source, where)
    config = read_part(lambda: config_of(name, source), where, advice)
    spec = architecture_of(config)
    task_type = task_type_for(task, config.model_type)
    if task_type == CLASSIFICATION:
        name_classes(config, labels)
    check_head(config, where)
    check_sizes(config, where)
    anatomy = anatomy_of(config, task_type)
    tokenizer = read_part(lambda: pretrained.read_tokenizer(source, trust), where, advice)
    check_tokenizer(tokenizer, config, spec.special_tokens)
    return Base(source, config, tokenizer, anatomy, task_type, dtype=pretrained.stated_dtype(source, config))


def config_of(name: str, source: str) -> PretrainedConfig:
    """The configuration of a model that can be trained, without parts for images. No code of its folder runs.

    Raises:
        UserError: its class is in the folder's own code, or the model has sizes by layer.
        OSError, ValueError, KeyError: there is none, or it is broken.
    """
    try:
        config = language_config(pretrained.read_config(source))
    except pretrained.NeedsCodeError:
        raise UserError(
            f"--model_name_or_path {name!r}: its architecture is defined by code of its own and is not supported; "
            f"supported: {', '.join(sorted(REGISTRY))}. {GUIDE}"
        ) from None
    if config.model_type.startswith(ADAPTIVE_PREFIX):
        raise UserError(
            f"--model_name_or_path {name!r} has sizes by layer (--structure adaptive) and cannot be tuned or cut "
            "again: start from the model it was made from, or make it again with --structure uniform"
        )
    return config


def task_type_for(task: str, model_type: str) -> str:
    """The task type with which a family answers a task.

    Raises:
        UserError: the family does not support the task.
    """
    # `anatomy_of` refuses an unknown family and lists the known ones
    kinds = REGISTRY[model_type].tasks if model_type in REGISTRY else {task: LANGUAGE_MODEL}
    if task not in kinds:
        raise UserError(f"--task {task} is not for a model of type {model_type!r}; give one of {', '.join(kinds)}")
    return kinds[task]


def name_classes(config: PretrainedConfig, labels: tuple[str, ...]) -> None:
    """Configure a classifier for these labels. Without labels it gives a number."""
    config.id2label = dict(enumerate(labels or ("score",)))
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.problem_type = "single_label_classification" if labels else "regression"
