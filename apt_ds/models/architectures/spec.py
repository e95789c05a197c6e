"""What the package knows of one family of models: `Architecture`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

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
Export = Callable[[nn.Module, PretrainedConfig, Anatomy], Written]


def every_size(config: PretrainedConfig) -> Writable:
    """The export writes all uniform sizes."""
    return EVERY_SIZE


def no_offset(config: PretrainedConfig) -> int:
    """The first token has position 0."""
    return 0


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
        export: how a cut model is written, by (model, configuration before the cut, blocks after it). It may change
            its configuration, which is a copy.
        modeling: the modelling file with classes for sizes by layer, named `Apt` plus the stock class. It is copied
            beside exported weights, so it imports torch and transformers only. None: `export` needs none.
        writable: the uniform sizes that `export` can write.
        heads: each task type to the paths of the layers that a base model may lack. The linear layers are trained
            whole. The last layer makes the answer.
        special_tokens: the tokens that the tokenizer must have. Other families pad with their end token.
        position_offset: the position of the first token in the table of position embeddings.
        prepare: what a loaded model needs before it can be cut, by (model, blocks).
        own_attention: the stock class has one attention of its own instead of the kernels of transformers.
    """

    model_type: str
    tasks: Mapping[str, str]
    stock_classes: Mapping[str, str]
    blocks: Blocks
    export: Export
    modeling: ModuleType | None = None
    writable: Callable[[PretrainedConfig], Writable] = every_size
    heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    special_tokens: tuple[str, ...] = ()
    position_offset: Callable[[PretrainedConfig], int] = no_offset
    prepare: Callable[[PreTrainedModel, Anatomy], None] = no_preparation
    own_attention: bool = False

    @property
    def first_task_type(self) -> str:
        """The task type of a model whose configuration names no class."""
        return next(iter(self.stock_classes))

    def attention_kernel(self, asked: str) -> str:
        """The attention kernel to load a model with. asked: that of `--attn_implementation`.

        Raises:
            UserError: the family does not support it.
        """
        if not self.own_attention:
            return asked
        if asked == FLASH:
            raise UserError(
                f"--attn_implementation {asked}: architecture '{self.model_type}' has an attention of its own only; "
                "give eager, or leave it out"
            )
        return "eager"

    @property
    def own_classes(self) -> dict[str, type[PreTrainedModel]]:
        """The classes of the modelling file that have sizes by layer, by task type."""
        names = {task: f"Apt{stock}" for task, stock in self.stock_classes.items()}
        return {task: getattr(self.modeling, name) for task, name in names.items() if hasattr(self.modeling, name)}
