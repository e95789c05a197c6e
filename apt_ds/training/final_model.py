"""The model that a run ends with, written as an ordinary model folder, and its adapters as a PEFT folder."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

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
from apt_ds.training.final_adapters import write_final_adapters
from apt_ds.training.run_parts import RunParts


def write_final_model(parts: RunParts, model: PreTrainedModel) -> Exported:
    """Write the model to `model/`, and its adapters if asked for. Collective.

    Args:
        parts: what the run consists of. Its pruner knows the blocks of `model`, and which of the base model's they are.
        model: has no engine and no hooks.

    Raises:
        UserError: the model cannot be written. The message says how to go on.
    """
    run, base, anatomy = parts.run_config, parts.base, parts.pruner.anatomy
    output, bits = parts.metrics_logger.folder, run.model.export_bits
    facts, advice = facts_of(parts, model), parts.saver.advice(parts.done)
    try:
        result = export(
            model,
            anatomy,
            base.config,
            parts.generation,
            base.tokenizer,
            output / "model",
            task=base.task_type,
            bits=bits,
            dtype=parts.written_dtype,
            form=run.output.export_format,
            facts=facts,
        )
        if run.output.export_adapters:
            write_final_adapters(model, anatomy, base, parts.generation, output, bits, parts.written_dtype)
        return result
    except UserError as error:
        raise UserError(f"{error}{advice}") from None
    except Exception:
        parts.metrics_logger.warn(f"the model was not written{advice}")
        raise


def facts_of(parts: RunParts, model: nn.Module) -> Facts:
    """What `apt_ds.json` says. Arguments are those of `write_final_model`. `export` completes the form."""
    run, base, blocks = parts.run_config, parts.base, parts.pruner.blocks
    whole, data = base.anatomy, dict(parts.saver.fingerprints)
    sublayers, hidden = kept_sublayers(whole, blocks.kept_ids, blocks.scale)
    about = BaseFacts(
        name=public_name(run.model.model_name_or_path),
        model_type=base.config.model_type,
        task_type=base.task_type,
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
    if base.task_type == LANGUAGE_MODEL:
        form = written(model, base.config, anatomy, base.task_type, run.output.export_format, base.anatomy)
        lines += consumers.vllm_problems(form.config, gpus)
    return lines
