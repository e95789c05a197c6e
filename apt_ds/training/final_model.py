"""The model that a run ends with, written as an ordinary model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import consumers
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.configs import written
from apt_ds.models.export.write import export
from apt_ds.models.loading import Base


def write_final_model(
    model: PreTrainedModel,
    anatomy: Anatomy,
    base: Base,
    generation: GenerationConfig | None,
    folder: Path,
    bits: int,
    dtype: torch.dtype,
    advice: str,
    warn: Callable[[str], None],
) -> None:
    """Write the model. Collective.

    Args:
        model: has no engine and no hooks.
        anatomy: that of `model`.
        base: the base model that the run started from.
        generation: generation settings of the base model. None if it cannot generate.
        folder: where the model goes.
        bits: --export_bits.
        dtype: dtype of weights that are not quantized.
        advice: how to go on after a failure, for the end of a message.
        warn: prints a line.

    Raises:
        UserError: the model cannot be written.
    """
    try:
        export(model, anatomy, base.config, generation, base.tokenizer, folder, base.kind, bits, dtype)
    except UserError as error:
        raise UserError(f"{error}{advice}") from None
    except Exception:
        warn(f"the model was not written{advice}")
        raise


def excluded_consumers(model: nn.Module, anatomy: Anatomy, base: Base, gpus: int) -> list[str]:
    """Which consumers the kept sizes exclude, one line for each reason.

    Args:
        model: the cut model. Only its configuration is read.
        anatomy: that of `model`.
        base: the base model that the run started from.
        gpus: --tensor_parallel.
    """
    lines = consumers.excluded(base.anatomy, anatomy, gpus)
    if base.kind == LANGUAGE_MODEL:
        lines += consumers.vllm_problems(written(model, base.config, anatomy, base.kind).config, gpus)
    return lines
