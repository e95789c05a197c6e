"""The adapters that a run ends with, as a PEFT folder beside the cut base that they fit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import CLASSIFICATION
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.configs import written
from apt_ds.models.export.peft_adapters import write_adapters
from apt_ds.models.export.write import export
from apt_ds.models.loading import Base
from apt_ds.models.peft_format import BaseNote
from apt_ds.models.pretrained import read_config
from apt_ds.models.stored_weights import fingerprint_of_source
from apt_ds.runtime import collectives


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
        export(
            model,
            anatomy,
            base.config,
            generation,
            base.tokenizer,
            folder,
            task=base.task_type,
            bits=bits,
            dtype=dtype,
            merge=False,
        )
        source = str(folder)
    hash_ = collectives.on_main(lambda: fingerprint_of_source(source, f"the base {source!r} of the adapters"))
    labels = tuple((base.config.id2label or {}).values()) if base.task_type == CLASSIFICATION else ()
    form = written(model, base.config, anatomy, base.task_type)
    try:
        write_adapters(
            model, anatomy, form.joined, BaseNote(source, hash_, base.task_type, labels), output / "adapters"
        )
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {output / 'adapters'}: {reason}; free space") from None


def has_other_parts(base: Base) -> bool:
    """Whether the base's folder has more than the language model that was trained, such as parts for images."""
    return read_config(base.source).model_type != base.config.model_type
