"""The configuration of a cut model, found by the spec of its family."""

from __future__ import annotations

import copy

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.tasks import CLASSIFICATION
from apt_ds.models.architectures import architecture_of
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.form import Written
from apt_ds.models.writable_sizes import Writable


def written(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, task: str) -> Written:
    """How a cut model is written: in a stock configuration if one has the sizes, else with sizes by layer.

    Args:
        model: the cut model. Labels and kept heads are read from it.
        config: the configuration before the cut. It is not changed.
        anatomy: the blocks after the cut.
        task: the task type.

    Raises:
        ValueError: transformers refuses the configuration.
    """
    form = architecture_of(config).export(model, copy.deepcopy(config), anatomy)
    config = form.config
    # the family may have changed: some LLaMAs are written as Mistrals
    stock = architecture_of(config).stock_classes[task]
    config.use_cache = True
    config.architectures = [f"Apt{stock}" if form.module else stock]
    if task == CLASSIFICATION:
        for name in ("id2label", "label2id", "problem_type"):
            setattr(config, name, copy.copy(getattr(model.config, name)))
    if form.module:
        module = form.module.__name__.rpartition(".")[2]
        names = {"AutoConfig": type(config).__name__, AUTO_CLASSES[task].__name__: f"Apt{stock}"}
        config.auto_map = {key: f"{module}.{name}" for key, name in names.items()}
    return form


def writable_sizes(config: PretrainedConfig) -> Writable:
    """The uniform sizes that a run may choose for a model with this configuration."""
    return architecture_of(config).writable(config)
