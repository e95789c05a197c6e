"""The model that a run ends with, written as an ordinary model folder, and its adapters as a PEFT folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import CLASSIFICATION, LANGUAGE_MODEL
from apt_ds.models import consumers
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.configs import written
from apt_ds.models.export.peft_adapters import write_adapters
from apt_ds.models.export.write import export
from apt_ds.models.loading import Base
from apt_ds.models.peft_format import BaseNote
from apt_ds.models.pretrained import read_config
from apt_ds.models.stored_weights import fingerprint_of_source
from apt_ds.runtime import collectives


def write_final_model(
    model: PreTrainedModel,
    anatomy: Anatomy,
    base: Base,
    generation: GenerationConfig | None,
    output: Path,
    bits: int,
    dtype: torch.dtype,
    advice: str,
    warn: Callable[[str], None],
    export_adapters: bool = False,
) -> None:
    """Write the model, and its adapters if asked for. Collective.

    Args:
        model: has no engine and no hooks.
        anatomy: that of `model`.
        base: the base model that the run started from.
        generation: generation settings of the base model. None if it cannot generate.
        output: the output folder of the run. The model goes to `model/`.
        bits: --export_bits.
        dtype: dtype of weights that are not quantized.
        advice: how to go on after a failure, for the end of a message.
        warn: prints a line.
        export_adapters: --export_adapters.

    Raises:
        UserError: the model cannot be written.
    """
    try:
        export(model, anatomy, base.config, generation, base.tokenizer, output / "model", base.kind, bits, dtype)
        if export_adapters:
            write_final_adapters(model, anatomy, base, generation, output, bits, dtype)
    except UserError as error:
        raise UserError(f"{error}{advice}") from None
    except Exception:
        warn(f"the model was not written{advice}")
        raise


def write_final_adapters(
    model: PreTrainedModel,
    anatomy: Anatomy,
    base: Base,
    generation: GenerationConfig | None,
    output: Path,
    bits: int,
    dtype: torch.dtype,
) -> None:
    """Write `adapters/`, and `base/` if the run has cut the model. Collective.

    Args:
        model: the trained model without an engine and hooks.
        anatomy: that of `model`.
        base: the base model that the run started from.
        generation: generation settings of the base model. None if it cannot generate.
        output: the output folder of the run.
        bits: --export_bits, for `base/`.
        dtype: dtype of the weights of `base/` that are not quantized.

    Raises:
        UserError: a folder cannot be written.
    """
    source = str(Path(base.source).resolve()) if Path(base.source).is_dir() else base.source
    if anatomy.sizes != base.anatomy.sizes or has_other_parts(base):
        folder = (output / "base").resolve()
        export(model, anatomy, base.config, generation, base.tokenizer, folder, base.kind, bits, dtype, merge=False)
        source = str(folder)
    hash_ = collectives.on_main(lambda: fingerprint_of_source(source, f"the base {source!r} of the adapters"))
    labels = tuple((base.config.id2label or {}).values()) if base.kind == CLASSIFICATION else ()
    form = written(model, base.config, anatomy, base.kind)
    try:
        write_adapters(model, anatomy, form.joined, BaseNote(source, hash_, base.kind, labels), output / "adapters")
    except OSError as error:
        raise UserError(f"cannot write {output / 'adapters'}: {error.strerror or error}; free space") from None


def has_other_parts(base: Base) -> bool:
    """Whether the base's folder has more than the language model that was trained, such as parts for images."""
    return read_config(base.source).model_type != base.config.model_type


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
