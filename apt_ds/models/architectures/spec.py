"""What the package knows of one family of models: `Architecture`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.form import Written
from apt_ds.models.logit_transform import IDENTITY, LogitTransform
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable

# the class of transformers that loads a model for each task type
AUTO_CLASSES = {
    LANGUAGE_MODEL: AutoModelForCausalLM,
    CLASSIFICATION: AutoModelForSequenceClassification,
    ANSWERS: AutoModelForQuestionAnswering,
    GENERATION: AutoModelForSeq2SeqLM,
}
FLASH = "flash_attention_2"
ADAPTIVE_PREFIX = "apt_"  # model types with sizes by layer begin with it

Blocks = Callable[[PretrainedConfig, str], Anatomy]
Export = Callable[..., Written]
Padded = Callable[[nn.Module, PretrainedConfig, Anatomy, Anatomy], Written]


def every_size(config: PretrainedConfig) -> Writable:
    """The export writes all uniform sizes."""
    return EVERY_SIZE


def no_offset(config: PretrainedConfig) -> int:
    """The first token has position 0."""
    return 0


def every_attention(config: PretrainedConfig, wanted: str) -> str:
    """The family computes the same with every attention kernel."""
    return wanted


def own_attention(config: PretrainedConfig, wanted: str) -> str:
    """The stock class has one attention of its own instead of the kernels of transformers.

    Raises:
        UserError: flash attention is wanted.
    """
    if wanted == FLASH:
        raise UserError(
            f"--attn_implementation {wanted}: architecture '{config.model_type}' has an attention of its own only; "
            "give eager, or leave it out"
        )
    return "eager"


def logits_of_head(config: PretrainedConfig) -> LogitTransform:
    """The output of the LM head is the logits."""
    return IDENTITY


def nothing_joined(anatomy: Anatomy) -> Mapping[str, tuple[str, ...]]:
    """The trained model has the weights of stock checkpoints."""
    return {}


def no_preparation(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """A loaded model can be cut as it is."""


@dataclass(frozen=True)
class Architecture:
    """One family of models. `register` of this package makes it known. No other module names a family.

    A family that differs little from another is `dataclasses.replace(other, ...)` with the differences.

    Attributes:
        model_type: the name in config.json.
        tasks: values of `--task` to the task type that the family answers with, constants of `config/tasks.py`.
        stock_classes: each task type to the name of the class of transformers.
        blocks: the table of blocks, by (configuration, task type). See `models/blocks.py`.
        export: how a cut model is written, by (model, configuration before the cut, blocks after it) and `stock`:
            whether the stock class is taken where it has the sizes. It may change its configuration, which is a copy.
        padded: how a cut model is written as a stock one with zeros, by (model, configuration before the cut, blocks
            before it, blocks after it). None: as `export/padded_form.py` does.
        modeling: the modelling file with classes for sizes by layer, named `Apt` plus the stock class. It is copied
            beside exported weights, so it imports torch and transformers only. None: `export` needs none.
        writable: the uniform sizes that `export` can write.
        task_heads: each task type to the paths of the layers that a base model may lack. The linear layers are trained
            whole. The last layer makes the answer.
        special_tokens: the tokens that the tokenizer must have. Other families pad with their end token.
        position_offset: the position of the first token in the table of position embeddings.
        title: the published models, for documents. '': the name of the stock class.
        uniform_form: how a model with uniform sizes is written, for documents. '': always as the stock class.
        logits: what the family does to its logits after the LM head. The loss at the head needs it.
        prepare: what a loaded model needs before it can be cut, by (model, blocks).
        attention: the attention kernel to use, by (configuration, value of `--attn_implementation`).
        training_classes: each task type to the class that is trained, where it is not the stock class. It reads the
            same files.
        begins_with_bos: texts must begin with the BOS token, because the model is far worse without it.
        joined: the weights that stock checkpoints have as one, by the blocks of the model: its name to the names of its
            parts in the model, in the order of rows.
        multimodal: the model type of checkpoints that have the family as `text_config`, beside parts for images. The
            language model alone is read of them. '': there are none.
    """

    model_type: str
    tasks: Mapping[str, str]
    stock_classes: Mapping[str, str]
    blocks: Blocks
    export: Export
    modeling: ModuleType | None = None
    writable: Callable[[PretrainedConfig], Writable] = every_size
    task_heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    special_tokens: tuple[str, ...] = ()
    position_offset: Callable[[PretrainedConfig], int] = no_offset
    title: str = ""
    uniform_form: str = ""
    logits: Callable[[PretrainedConfig], LogitTransform] = logits_of_head
    prepare: Callable[[PreTrainedModel, Anatomy], None] = no_preparation
    attention: Callable[[PretrainedConfig, str], str] = every_attention
    training_classes: Mapping[str, type[PreTrainedModel]] = field(default_factory=dict)
    begins_with_bos: bool = False
    joined: Callable[[Anatomy], Mapping[str, tuple[str, ...]]] = nothing_joined
    multimodal: str = ""
    padded: Padded | None = None

    @property
    def first_task_type(self) -> str:
        """The task type of a model whose configuration names no class."""
        return next(iter(self.stock_classes))

    def empty_model(self, config: PretrainedConfig, task: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
        """A model of the class that is trained, with the weights that its constructor makes.

        Args:
            config: the configuration. It is not changed.
            task: the task type.
            dtype: the dtype of the weights.
            attention: the value of `--attn_implementation`.
        """
        make = (
            self.training_classes[task]._from_config
            if task in self.training_classes
            else AUTO_CLASSES[task].from_config
        )
        kernel = self.attention(config, attention)
        return make(copy.deepcopy(config), dtype=dtype, attn_implementation=kernel)

    @property
    def own_classes(self) -> dict[str, type[PreTrainedModel]]:
        """The classes of the modelling file that have sizes by layer, by task type."""
        names = {task: f"Apt{stock}" for task, stock in self.stock_classes.items()}
        return {task: getattr(self.modeling, name) for task, name in names.items() if hasattr(self.modeling, name)}
