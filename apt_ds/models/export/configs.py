"""The configuration of a cut model, found by the spec of its family."""

from __future__ import annotations

import copy
from types import ModuleType

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.output_options import ADAPTIVE, NOT_STOCK, PADDED, STOCK
from apt_ds.config.output_options import AUTO_FORM as AUTO
from apt_ds.config.tasks import CLASSIFICATION
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.form import Written
from apt_ds.models.export.padded_form import padded_form
from apt_ds.models.writable_sizes import Writable

# the end of a class's name: the automatic class of transformers that makes it
AUTO_NAMES = {
    "Model": "AutoModel",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}


def written(
    model: nn.Module,
    config: PretrainedConfig,
    anatomy: Anatomy,
    task: str,
    form: str = AUTO,
    whole: Anatomy | None = None,
) -> Written:
    """How a cut model is written.

    Args:
        model: the cut model. Labels and kept heads are read from it.
        config: the configuration before the cut. It is not changed.
        anatomy: the blocks after the cut.
        task: the task type.
        form: the value of `--export_format`. auto: in a stock configuration if one has the sizes, else with sizes by
            layer.
        whole: the blocks before the cut. None: they are read from `config`.

    Raises:
        ValueError: transformers refuses the configuration.
        UserError: the model cannot have that form.
    """
    spec = architecture_of(config)
    if form == PADDED:
        result = padded_form(model, config, whole or anatomy_of(config, task), anatomy)
    elif form == ADAPTIVE:
        result = spec.export(model, copy.deepcopy(config), anatomy, stock=False)
    else:
        result = spec.export(model, copy.deepcopy(config), anatomy)
    if form == STOCK and result.modules:
        raise UserError(NOT_STOCK)
    complete(model, result, task)
    return result


def complete(model: nn.Module, form: Written, task: str) -> None:
    """Add the names of classes and of labels to a configuration."""
    config = form.config
    # the family may have changed: some LLaMAs are written as Mistrals
    stock = architecture_of(config).stock_classes[task]
    config.use_cache = True
    config.architectures = [f"Apt{stock}" if form.modules else stock]
    if task == CLASSIFICATION:
        for name in ("id2label", "label2id", "problem_type"):
            setattr(config, name, copy.copy(getattr(model.config, name)))
    if form.modules:
        config.auto_map = auto_map(form.modules[0], type(config))


def auto_map(modeling: ModuleType, config_class: type[PretrainedConfig]) -> dict[str, str]:
    """The field of config.json that names the class in a modelling file for each automatic class of transformers."""
    names = {"AutoConfig": config_class.__name__}
    for name, value in vars(modeling).items():
        if getattr(value, "config_class", None) is config_class and value.__module__ == modeling.__name__:
            names |= {auto: name for ending, auto in AUTO_NAMES.items() if name.endswith(ending)}
    file = modeling.__name__.rpartition(".")[2]
    return {auto: f"{file}.{name}" for auto, name in names.items()}


def writable_sizes(config: PretrainedConfig, new_biases: bool = False) -> Writable:
    """The uniform sizes that a run may choose for a model with this configuration.

    new_biases: whether a cut gives biases to the consumers of a family that can write them.
    """
    if new_biases:
        config = copy.deepcopy(config)
        config.attention_bias = config.mlp_bias = True
    return architecture_of(config).writable(config)
