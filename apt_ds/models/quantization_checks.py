"""Checks of the options that ask for 4 or 8 bits, before anything is loaded."""

from __future__ import annotations

import torch

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, plural
from apt_ds.models.export.quantize_formats import GROUPS, check_library
from apt_ds.models.quantization import BLOCK, ROWS
from apt_ds.models.scope import competing_kinds
from apt_ds.runtime.bnb import library


def check(run: RunConfig, anatomy: Anatomy, device: torch.device | None) -> None:
    """Check the options for quantized weights. device: None if the run's device is elsewhere.

    Combinations that are tested (`tests/integration/test_quantized_runs.py`,
    `tests/integration/test_large_models.py`):

    ZeRO 2 and 3                        the same blocks, losses differ by < 1e-4
    offload and checkpointing (ZeRO 3)  the same blocks, losses differ by < 1e-4
    bf16, adamw_8bit, paged_adamw_8bit  resumes bit for bit, across cuts
    fp16                                refused where DeepSpeed has none, as on most CPUs; untried on a GPU
    adamw_8bit, offloaded optimizer     refused, see `ds_config`
    gradients of all weights            refused here
    task heads (BERT's)                 plain layers, since they are trained whole

    Raises:
        UserError: the combination of options is not supported.
    """
    _check_export(run, anatomy)
    flag = next((f"--{n} {v}" for n, v, plain in _wishes(run) if v != plain), "")
    if not flag:
        return
    if run.model.base_bits != 16 and run.optim.trainable == "all":
        raise UserError(
            f"--base_bits {run.model.base_bits} freezes the base: --train all (--method full) needs --base_bits 16"
        )
    if run.model.base_bits != 16 and run.pruning.score == "taylor":
        raise UserError(
            f"--base_bits {run.model.base_bits}: --score taylor (--method prune_lora) needs gradients of all weights, "
            "and quantized weights have none; give --score salience or fisher, or --base_bits 16"
        )
    if run.model.export_bits not in (16, run.model.base_bits):
        raise UserError(
            f"--export_bits {run.model.export_bits} is not allowed: give 16, or --base_bits {run.model.export_bits} too"
        )
    if device is not None and device.type not in library(flag).supported_torch_devices:
        raise UserError(f"{flag}: bitsandbytes does not support {device.type}; leave it out")
    if run.model.base_bits == 4:
        _check_sizes(run, anatomy)


def _check_export(run: RunConfig, anatomy: Anatomy) -> None:
    """Check --export_quantization as far as the base model tells. The sizes after the cut are checked at the end."""
    kind = run.output.export_quantization
    if kind == "none":
        return
    if run.model.export_bits != 16:
        raise UserError(
            f"--export_quantization {kind} quantizes a copy of the 16-bit model: "
            f"leave out --export_bits {run.model.export_bits}"
        )
    if anatomy.experts:
        raise UserError(f"--export_quantization {kind} does not support mixtures of experts; leave it out")
    multiple, hidden = {"nf4": BLOCK, "w4a16": GROUPS[-1]}.get(kind, 1), anatomy.sizes.hidden
    if hidden % multiple and not (run.pruning.prunes and "hidden" in run.pruning.block_kinds):
        raise UserError(
            f"--export_quantization {kind} needs rows of a multiple of {multiple} weights, and the model keeps its "
            f"hidden size of {hidden}. Use fp8"
        )
    check_library(kind)


def _wishes(run: RunConfig) -> list[tuple[str, int | str, int | str]]:
    """(option, value, what it is without bitsandbytes)."""
    plain: dict[str, int | str] = {"base_bits": 16, "export_bits": 16, "optim": "adamw_torch"}
    return [(name, run.flag(name), value) for name, value in plain.items()]


def needed(run: RunConfig) -> bool:
    """Whether a run uses bitsandbytes."""
    return any(value != plain for _, value, plain in _wishes(run))


def align(run: RunConfig, default: int) -> int:
    """Blocks of 4-bit weights must not cross rows: kept sizes are then multiples of them."""
    return run.pruning.align or (max(default, BLOCK) if run.model.base_bits == 4 else default)


def _check_sizes(run: RunConfig, anatomy: Anatomy) -> None:
    """Rows must be whole blocks, before a cut and after, and their number what bitsandbytes can run."""
    paths = {path for targets in anatomy.targets.values() for path in targets}
    for slot in anatomy.slots:
        if slot.path not in paths:
            continue
        for axis, unit, what in ((slot.columns, BLOCK, "inputs"), (slot.rows, ROWS, "outputs")):
            assert axis is not None, f"{slot.path} is an adapter target: blocks index both of its dimensions"
            size, step = _size_and_step(axis, run, anatomy)
            if size % unit:
                raise UserError(
                    f"--base_bits 4: {slot.path} has {size} {what}, which is no multiple of {unit}, the block that "
                    "is quantized together; use --base_bits 8 or 16"
                )
            if step % unit:
                raise UserError(
                    f"--base_bits 4: pruning {anatomy.kind(axis.site)} blocks would leave {slot.path} a number of "
                    f"{what} that is no multiple of {unit}; give an --align that is, take that kind out of "
                    "--prune_blocks, or use --base_bits 8 or 16"
                )


def _size_and_step(axis: Axis, run: RunConfig, anatomy: Anatomy) -> tuple[int, int]:
    """A dimension's size, and what a cut's sizes are multiples of (the size where nothing may go)."""
    kind = anatomy.kind(axis.site)
    count = anatomy.sizes.hidden if axis.site == HIDDEN else anatomy.sizes.counts[axis.site]
    cuts = run.pruning.prunes and plural(kind) in competing_kinds(run, anatomy)
    blocks = count if not cuts else 1 if kind == "head" else align(run, 0)
    return count * axis.unit, blocks * axis.unit
