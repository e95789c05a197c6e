"""Mistral without a sliding window: the modules of LLaMA. The export writes some LLaMAs as Mistrals."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import llama
from apt_ds.models.blocks import Anatomy


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a LLaMA.

    Raises:
        UserError: the model has a sliding window.
    """
    if config.sliding_window is not None:
        raise UserError(
            f"architecture 'mistral' with a sliding window of {config.sliding_window} tokens is not supported; "
            "where no text is longer, set sliding_window to null in the config.json of the model"
        )
    return llama.blocks(config, task)


ARCHITECTURE = replace(
    llama.ARCHITECTURE,
    model_type="mistral",
    stock_classes={LANGUAGE_MODEL: "MistralForCausalLM"},
    blocks=blocks,
)
