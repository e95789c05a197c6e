"""Pairs of options that contradict each other, one line for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from apt_ds.config.option_types import split_commas
from apt_ds.config.output_options import STOCK
from apt_ds.config.pruning_options import AUTO
from apt_ds.config.tasks import INSTRUCTIONS

if TYPE_CHECKING:
    from apt_ds.config.run_config import RunConfig


def contradictions(run: RunConfig) -> Iterator[str]:
    """One line for each pair of options that contradict each other."""
    yield from _of_training(run)
    yield from _of_scores(run)
    yield from _of_cuts(run)
    yield from _of_teachers(run)
    yield from _of_data(run)
    yield from _of_output(run)


def _of_training(run: RunConfig) -> Iterator[str]:
    """What is trained, and how."""
    optim, pruning, adapter = run.optim, run.pruning, run.adapter
    if optim.max_steps == 0:
        yield "--max_steps 0 is not allowed: give at least 1, or -1 for --num_train_epochs"
    if optim.bf16 and optim.fp16:
        yield "--bf16 true and --fp16 true exclude each other. Give at most one"
    if optim.trainable == "all" and adapter.grows:
        yield (
            f"--train all requires --rank_growth none (got {adapter.rank_growth}), as the run has no adapters: "
            "--method full says both"
        )
    if optim.trainable == "all" and pruning.prunes and pruning.prune_scope == "adapted":
        yield "--prune_scope adapted requires --train adapters (got all): the run has no adapters"
    if optim.trainable == "all" and (run.output.export_adapters or adapter.init_adapters):
        name = "export_adapters" if run.output.export_adapters else "init_adapters"
        yield f"--{name} requires --train adapters (got all): the run has no adapters"
    if adapter.init_adapters and pruning.prunes and pruning.score == "taylor":
        yield (
            "--init_adapters does not support --score taylor, which scores before the adapters exist: "
            "give --score salience"
        )
    if adapter.grows and adapter.rank > adapter.max_rank:
        yield f"--rank {adapter.rank} is not allowed: give at most --max_rank {adapter.max_rank}"


def _of_scores(run: RunConfig) -> Iterator[str]:
    """How blocks are ranked."""
    pruning = run.pruning
    if pruning.mode == "gradual" and (pruning.score in ("fisher", "taylor", "obs") or pruning.scores_inputs):
        yield f"--pruning gradual does not support --score {pruning.score}. Give --score salience or random"
    if pruning.prunes and pruning.score == "obs" and "hidden" in pruning.block_kinds:
        yield (
            f"--score obs does not support --prune_blocks {pruning.prune_blocks}, as it scores heads and neurons "
            "only: leave hidden out, or give --score salience"
        )
    if pruning.score == "l0" and pruning.mode not in ("gradual", "none"):
        yield f"--score l0 requires --pruning gradual (got {pruning.mode}): the gates are trained with the model"
    if pruning.learns_gates and pruning.pruning_start:
        yield f"--score l0 does not support --pruning_start {pruning.pruning_start:g}: leave it out"
    if pruning.mode == "posttuning" and pruning.score == "taylor":
        yield "--pruning posttuning does not support --score taylor. Give --score fisher or salience"
    if pruning.prunes and not pruning.block_kinds:
        yield f"--prune_blocks hidden does not support --score {pruning.score}, which scores heads and neurons only"


def _of_cuts(run: RunConfig) -> Iterator[str]:
    """What happens at a cut."""
    pruning = run.pruning
    if pruning.allow_empty_layers and pruning.structure != "adaptive":
        yield f"--allow_empty_layers requires --structure adaptive (got {pruning.structure}), as layers then differ"
    if pruning.repairs and pruning.score == "fisher":
        yield "--repair ls does not support --score fisher, which has a fit of its own. Give --repair none"
    yield from _of_repaired_gradual_cuts(run)
    for flag, given in (("--allocate kl", pruning.allocates), ("--scale_steps", pruning.scales)):
        if given and not pruning.one_shot:
            yield f"{flag} requires --pruning pretuning or posttuning (got {pruning.mode}): others have no one cut"
    reasons = {
        "fisher": "fits factors of its own",
        "taylor": "trains every weight before the cut",
        "flap": "changes biases after the factors are learnt",
    }
    if pruning.scales and (reason := reasons.get(pruning.score)):
        yield f"--scale_steps does not support --score {pruning.score}, which {reason}. Give --scale_steps 0"
    if pruning.scales and pruning.repairs:
        yield (
            f"--scale_steps does not support --repair {pruning.repair}, which changes the weights after the "
            "factors are learnt. Give --scale_steps 0 or --repair none"
        )
    if pruning.mode == "gradual" and pruning.pruning_start + pruning.pruning_phase > 1 + 1e-9:
        yield (
            f"--pruning_start {pruning.pruning_start:g} and --pruning_phase {pruning.pruning_phase:g} exceed the "
            "run. Give at most 1 together"
        )


def _of_repaired_gradual_cuts(run: RunConfig) -> Iterator[str]:
    """Gradual pruning with a repair, whose cuts remove at once what they decide."""
    pruning = run.pruning
    if not (pruning.repairs and pruning.gradual):
        return
    if pruning.learns_gates:
        yield "--repair ls does not support --score l0, whose gates have removed the blocks before the cut"
    elif pruning.self_distills and pruning.teacher == "unpruned":
        yield (
            "--repair ls with --pruning gradual does not support --distill layers with --teacher unpruned, which "
            "needs the unchanged weights of every block. Give --teacher shrinking, --distill none or logits"
        )
    elif pruning.self_distills and run.optim.trainable == "all":
        yield (
            "--repair ls with --pruning gradual and --distill layers requires --train adapters (got all): the teacher "
            "has weights of its own, which no repair changes"
        )
    elif pruning.defer_cuts:
        yield (
            "--repair ls with --pruning gradual does not support --defer_cuts true, as each cut comes with its "
            "repair: leave --defer_cuts out, or give --pruning posttuning for one cut"
        )


def _of_teachers(run: RunConfig) -> Iterator[str]:
    """What the student learns from."""
    pruning, data = run.pruning, run.data
    if pruning.self_distills and pruning.mode != "gradual":
        yield (
            f"--distill layers requires --pruning gradual (got {pruning.mode}): its teacher exists only during "
            "gradual pruning. Language models may give --distill logits"
        )
    if pruning.dense_teacher and data.task != INSTRUCTIONS:
        yield f"--distill logits does not support --task {data.task}. Give --task instructions, or --distill layers"
    if pruning.dense_teacher and data.streaming and pruning.teacher_source == "cache":
        yield (
            "--distill logits with --teacher_source cache does not support --streaming true: the dense model reads "
            "the training data before the first step. Give --teacher_source live"
        )
    if pruning.teacher_cache and not pruning.dense_teacher:
        yield f"--teacher_cache requires --distill logits (got {pruning.distill}): no other teacher has a cache"
    if pruning.teacher_cache and pruning.teacher_source == "live":
        yield "--teacher_cache requires --teacher_source cache (got live): a live teacher writes nothing"


def _of_data(run: RunConfig) -> Iterator[str]:
    """What the run reads."""
    optim, pruning, adapter, data = run.optim, run.pruning, run.adapter, run.data
    if AUTO in (targets := split_commas(adapter.adapter_targets)) and len(targets) > 1:
        yield f"--adapter_targets {adapter.adapter_targets} is not allowed: give {AUTO}, or the names of projections"
    if data.packing and data.task != INSTRUCTIONS:
        yield f"--packing true does not support --task {data.task}: only causal language models pack examples"
    if data.packing and pruning.score == "fisher":
        yield "--packing true does not support --score fisher, which needs one row per example"
    if data.packing and data.group_by_length:
        yield "--group_by_length requires --packing false: packing fills rows with examples of any length"
    if data.streaming and data.task != INSTRUCTIONS:
        yield f"--streaming true does not support --task {data.task}: only language models read streams"
    if data.streaming and optim.max_steps < 1:
        yield f"--streaming true requires --max_steps of at least 1 (got {optim.max_steps}): a stream has no length"
    if data.streaming and data.group_by_length:
        yield "--streaming true does not support --group_by_length true: lengths are unknown. Give --packing true"
    if data.rewrite_answers and data.task != INSTRUCTIONS:
        yield f"--rewrite_answers does not support --task {data.task}: only language models write answers"
    if data.rewrite_answers and data.streaming:
        yield "--rewrite_answers does not support --streaming: it needs the examples before training starts"
    if data.rewrite_answers and adapter.init_adapters:
        yield "--rewrite_answers does not support --init_adapters: answers come from the base without adapters"
    if data.calibration_path and not (pruning.one_shot or pruning.repairs):
        yield (
            f"--calibration_path requires --pruning pretuning or posttuning, or --repair ls (got {pruning.mode}): "
            "other runs score their training steps, or nothing"
        )
    reads = pruning.repairs or pruning.allocates or pruning.scales
    if data.calibration_path and pruning.score == "random" and not reads:
        yield (
            "--calibration_path requires a score of data (got --score random), or --repair, --allocate kl or "
            "--scale_steps"
        )


def _of_output(run: RunConfig) -> Iterator[str]:
    """What the run writes."""
    pruning = run.pruning
    if "none" in split_commas(run.output.report_to) and run.output.trackers:
        yield f"--report_to {run.output.report_to} is not allowed: give none, or the names of trackers"
    if run.output.export_format == STOCK and pruning.prunes and pruning.structure == "adaptive":
        yield (
            "--export_format stock does not support --structure adaptive, as layers then differ. Give "
            "--export_format padded, which fills the smaller layers up with zeros"
        )
