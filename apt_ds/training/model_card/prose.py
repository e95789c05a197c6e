"""Sentences of a model card that depend on the options."""

from __future__ import annotations

from apt_ds.config.run_config import RunConfig
from apt_ds.training.model_card.command import shown
from apt_ds.training.summary_schema import Summary

MODES = {
    "pretuning": "all at once before tuning",
    "gradual": "step by step while the model was tuned",
    "posttuning": "all at once after tuning",
}


def removed(run: RunConfig, kept: float) -> str:
    """What was removed, how and when."""
    pruning = run.pruning
    if not pruning.prunes:
        return "Nothing."
    sizes = "the same sizes in every layer" if pruning.structure == "uniform" else "a size of its own for each layer"
    kinds = ", ".join(pruning.block_kinds)
    return (
        f"Whole {kinds} were removed {MODES[pruning.mode]}, with {sizes}: {100 * (1 - kept):.2f} % of the parameters "
        f"outside the embeddings. {pruning.score.capitalize()} ranked them."
    )


def data(run: RunConfig, summary: Summary, world_size: int) -> list[str]:
    """What the model was tuned, calibrated and evaluated on."""
    sizes, batch = summary["data"], run.optim.global_batch(world_size)
    source = shown(run.data.data_path)
    lines = [
        f"Task `{run.data.task}`, data `{source}`: {sizes['train']:,} training examples of at most "
        f"{run.data.max_seq_length} tokens.",
        f"{sizes['steps']:,} optimizer steps of {batch} examples.",
        f"Evaluated on {sizes['held_out']:,} examples"
        + (f" of `{shown(run.data.eval_data_path)}`." if run.data.eval_data_path else "."),
    ]
    if "rewritten" in sizes:
        lines.append(f"The base model wrote {sizes['rewritten']['rewritten']:,} of the training answers itself.")
    path = run.data.calibration_path
    kind = f"examples of `{shown(path)}`" if path else "training examples"
    if run.pruning.repairs:
        examples = -(-run.pruning.repair_examples // batch) * batch
        lines.append(f"Least squares on {examples:,} {kind} changed the weights that read what was removed.")
    if run.pruning.score == "random":
        return lines
    if run.pruning.one_shot:
        examples = run.pruning.calibration_steps * batch
        lines.append(f"Calibrated on {examples:,} {kind}: their gradients scored what was removed.")
    elif run.pruning.gradual:
        share, before = 100 * run.pruning.pruning_phase, 100 * run.pruning.pruning_start
        steps = f"{share:g} % of the steps, after {before:g} % without pruning," if before else ""
        lines.append(f"The gradients of {steps or f'the first {share:g} % of the steps'} scored what was removed.")
    return lines
