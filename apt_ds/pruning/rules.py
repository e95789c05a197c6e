"""What a run's options mean for its plans: which blocks compete, and whether masks have the steps they need."""

from __future__ import annotations

from dataclasses import replace

from apt_ds.config import schedules
from apt_ds.config.errors import UserError
from apt_ds.config.pruning_options import PruningOptions
from apt_ds.config.run_config import RunConfig
from apt_ds.models import quantization_checks
from apt_ds.models.blocks import Anatomy
from apt_ds.models.scope import competing_kinds
from apt_ds.models.tensor_parallel import check_whole, split_of
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable
from apt_ds.pruning.alignment import MISS, QUANTIZED, SERVED, automatic_align
from apt_ds.pruning.limits import SLACK, Rules, default_align

COARSE = 0.02  # fraction of the prunable parameters: a run warns of what it removes beyond its budget and this


def rules_of(run: RunConfig, anatomy: Anatomy, writable: Writable = EVERY_SIZE) -> Rules:
    """What the run's plans must respect.

    Args:
        run: the options.
        anatomy: the model before any cut.
        writable: the sizes that the export supports.

    Raises:
        UserError: the run prunes, and no block may be removed, or the family has no sublayers without blocks. Or the
            sizes cannot divide by `--tensor_parallel`.
    """
    kinds = competing_kinds(run, anatomy)
    if run.pruning.prunes and not kinds:
        raise UserError(
            "--prune_scope adapted leaves nothing to prune: no sublayer of "
            f"--prune_blocks {run.pruning.prune_blocks} has an adapter on {','.join(run.targets)}. "
            "Add one to --adapter_targets, or give --prune_scope all"
        )
    if run.pruning.allow_empty_layers and not all(site.module for site in anatomy.sites):
        raise UserError("--allow_empty_layers is not supported for this architecture: leave it out")
    for flag, given in (("--allocate kl", run.pruning.allocates), ("--scale_steps", run.pruning.scales)):
        if given and anatomy.experts:
            raise UserError(f"{flag} does not support a mixture of experts: leave it out")
    split = split_of(anatomy, run.pruning.tensor_parallel)
    check_whole(split, anatomy, kinds if run.pruning.prunes else ())
    rules = Rules(kinds, run.pruning.structure, 1, 1, writable, run.pruning.allow_empty_layers, split)
    align = run.pruning.align or _automatic_align(run, rules, anatomy)
    # a step that is larger than 1 % of the model must not decide between heads and neurons
    slack = MISS if not run.pruning.align and align > default_align(anatomy) else SLACK
    return replace(rules, align_neurons=align, align_hidden=align, slack=slack)


def _automatic_align(run: RunConfig, rules: Rules, anatomy: Anatomy) -> int:
    """The step of kept sizes that the run does not state."""
    if not run.pruning.prunes:
        return quantization_checks.align(run, default_align(anatomy))
    budget = (1.0 - run.pruning.sparsity) * anatomy.num_parameters(anatomy.sizes)
    # the model is quantized after the run too
    wanted = QUANTIZED if run.output.export_quantization in ("nf4", "fp8") else SERVED
    return quantization_checks.align(run, automatic_align(rules, anatomy, budget, wanted))


def coarse_notice(pruning: PruningOptions, kept: float) -> str:
    """One line if a model keeps far less than it may, as no allowed sizes are nearer, else ''.

    Args:
        pruning: the options of pruning.
        kept: fraction of the prunable parameters that remain.
    """
    target = 1.0 - pruning.sparsity
    if kept >= target - COARSE:
        return ""
    finer = ["other blocks"]
    finer += ["--structure adaptive"] if pruning.structure == "uniform" else []
    finer += ["--align 1"] if pruning.align != 1 else []
    return (
        f"{100 * kept:.1f} % of the prunable parameters remain where {100 * target:.1f} % may: no sizes that "
        f"--structure {pruning.structure}, --prune_blocks {pruning.prune_blocks} and --align allow are nearer. "
        f"Nearer sizes may come from {' or '.join(finer)}"
    )


def mask_notice(run: RunConfig, total_steps: int) -> str:
    """One line if masks of gradual pruning must jump at the end of a run of `total_steps`, else ''."""
    if not run.pruning.moves_masks:
        return ""
    end = schedules.pruning_end(total_steps, run.pruning.pruning_start, run.pruning.pruning_phase)
    return schedules.mask_notice(run.pruning.mask_step, total_steps, end)
