"""The model that a run ends with, written as an ordinary model folder, and its adapters as a PEFT folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.output_options import PADDED
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import adapter, consumers
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.configs import written
from apt_ds.models.export.facts import VERSION, BaseFacts, Facts, kept_sublayers, public_name, versions
from apt_ds.models.export.write import Exported, export
from apt_ds.models.loading import Base
from apt_ds.pruning.pruner import Pruner
from apt_ds.training.final_adapters import write_final_adapters


def write_final_model(
    model: PreTrainedModel,
    pruner: Pruner,
    base: Base,
    generation: GenerationConfig | None,
    output: Path,
    run: RunConfig,
    dtype: torch.dtype,
    fingerprints: dict[str, str],
    advice: str,
    warn: Callable[[str], None],
) -> Exported:
    """Write the model, and its adapters if asked for. Collective.

    Args:
        model: has no engine and no hooks.
        pruner: knows the blocks of `model`, and which of the base model's they are.
        base: the base model that the run started from.
        generation: generation settings of the base model. None if it cannot generate.
        output: the output folder of the run. The model goes to `model/`.
        run: the options.
        dtype: dtype of weights that are not quantized.
        fingerprints: of the base model as `model`, and of the data.
        advice: how to go on after a failure, for the end of a message.
        warn: prints a line.

    Raises:
        UserError: the model cannot be written.
    """
    bits, form = run.model.export_bits, run.output.export_format
    facts = facts_of(model, pruner, base, run, fingerprints)
    content = model, pruner.anatomy, base.config, generation, base.tokenizer
    try:
        result = export(*content, output / "model", base.kind, bits, dtype, form, facts)
        if run.output.export_adapters:
            write_final_adapters(model, pruner.anatomy, base, generation, output, bits, dtype)
        return result
    except UserError as error:
        raise UserError(f"{error}{advice}") from None
    except Exception:
        warn(f"the model was not written{advice}")
        raise


def facts_of(model: nn.Module, pruner: Pruner, base: Base, run: RunConfig, fingerprints: dict[str, str]) -> Facts:
    """What `apt_ds.json` says. Arguments are those of `write_final_model`. `export` completes the form."""
    whole, data = base.anatomy, dict(fingerprints)
    sublayers, hidden = kept_sublayers(whole, pruner.blocks.kept_ids, pruner.blocks.scale)
    about = BaseFacts(
        name=public_name(run.model.model_name_or_path),
        model_type=base.config.model_type,
        task_type=base.kind,
        fingerprint=data.pop("model", ""),
        parameters=whole.num_parameters(whole.sizes),
        hidden=whole.sizes.hidden,
    )
    return Facts(
        version=VERSION,
        versions=versions(),
        export_format=run.output.export_format,
        bits=run.model.export_bits,
        base=about,
        ranks=adapter.ranks(model),
        fingerprints=data,
        hidden=hidden,
        sublayers=sublayers,
    )


def describe(written: Exported) -> str:
    """What padding costs, in one line. '': the model is not padded."""
    if written.format != PADDED:
        return ""
    rest = written.bytes - written.padding_bytes
    return (
        f"padded with {written.padding_bytes / 1e6:,.1f} MB of zeros: {written.bytes / 1e6:,.1f} MB, "
        f"{100 * written.padding_bytes / max(rest, 1):.0f} % more than the adaptive form. "
        "It computes as much as a model of its uniform sizes"
    )


def excluded_consumers(model: nn.Module, anatomy: Anatomy, base: Base, run: RunConfig) -> list[str]:
    """Which consumers the kept sizes exclude, one line for each reason.

    Args:
        model: the cut model. Only its configuration is read.
        anatomy: that of `model`.
        base: the base model that the run started from.
        run: the options.
    """
    gpus = run.pruning.tensor_parallel
    lines = consumers.excluded(base.anatomy, anatomy, gpus)
    if base.kind == LANGUAGE_MODEL:
        form = written(model, base.config, anatomy, base.kind, run.output.export_format, base.anatomy)
        lines += consumers.vllm_problems(form.config, gpus)
    return lines
