"""A quantized copy of the model that a run has written, and what the copy costs in quality."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from apt_ds.config.run_config import RunConfig
from apt_ds.data.special_tokens import resolve_pad_id
from apt_ds.eval.held_out import held_out_loss
from apt_ds.models import pretrained
from apt_ds.models.export.quantize import auto_class, quantize_folder
from apt_ds.models.loading import Base
from apt_ds.models.weights import device_map
from apt_ds.runtime import collectives, heartbeat, zero
from apt_ds.training.run_data import Data
from apt_ds.training.summary_schema import QuantizedFigures


def write_quantized(run: RunConfig, base: Base, data: Data, folder: Path) -> QuantizedFigures:
    """Write `--export_quantization` beside the model, and measure both on the evaluation set. Collective.

    Every rank loads both folders in turn, whole, as their users do. It evaluates its share of the examples.

    Args:
        run: the options.
        base: the base model.
        data: has the evaluation set.
        folder: the written model of 16 or 32 bits.

    Raises:
        UserError: the model cannot be quantized so, or the copy cannot be written.
    """
    heartbeat.phase("quantizing the model", limited=False)
    kind = run.output.export_quantization
    into, written = collectives.on_main(lambda: quantize_folder(folder, kind))
    losses = [loss_of(run, base, data, place) for place in (folder, into)]
    return {
        "format": kind,
        "folder": into.name,
        "held_out_loss_before": losses[0],
        "held_out_loss": losses[1],
        "checkpoint_bytes": int(written["bytes"]),
        "mean_weight_error": written["mean_weight_error"],
        "largest_weight_error": written["largest_weight_error"],
    }


@torch.no_grad()
def loss_of(run: RunConfig, base: Base, data: Data, folder: Path) -> float:
    """Held-out loss of a written model. Collective."""
    device = zero.device()
    model: PreTrainedModel = auto_class(pretrained.read_config(str(folder))).from_pretrained(
        folder, dtype="auto", device_map=device_map(device, sharded=False), trust_remote_code=False
    )
    model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types
    # weights of compressed-tensors unpack in the first pass of the whole model, and losses call parts of it
    first = torch.tensor([[resolve_pad_id(base.tokenizer)]], device=device)
    extra = {"decoder_input_ids": first} if model.config.is_encoder_decoder else {}
    model(input_ids=first, **extra)
    batch = run.optim.per_device_eval_batch_size
    loss = held_out_loss(model, data.held_out, base.task_type, batch, resolve_pad_id(base.tokenizer), device)
    del model
    zero.free_memory()
    return loss


def render(figures: QuantizedFigures) -> str:
    """One line for the end of a run."""
    before, after = figures["held_out_loss_before"], figures["held_out_loss"]
    return (
        f"quantized copy: {figures['folder']} ({figures['checkpoint_bytes'] / 1e6:,.1f} MB), held-out loss {after:.4f} "
        f"({after - before:+.4f} to the model's {before:.4f})"
    )
