"""The model of transformers in an engine, with its type."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from apt_ds.runtime import zero


def pretrained_model(model: nn.Module) -> PreTrainedModel:
    """The model of transformers: `model` itself, or the one in the engine `model`."""
    # a cast: engines and PEFT forward attributes to a PreTrainedModel without being one
    return cast(PreTrainedModel, zero.unwrap(model))
