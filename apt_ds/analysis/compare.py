"""Compares methods under one budget of steps: trains each, evaluates each, and makes one table (the paper's Table 3).

Every run is a process of its own, as a user would start it, with its own folder in `--output_dir`. A finished run is
not trained again, so an interrupted comparison continues with what is missing. SIGTERM, SIGINT or SIGHUP also stops the
current run, which saves a checkpoint. The next start continues from it. Inference is measured last, all models
interleaved in one process.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apt_ds.analysis.compare_jobs import (
    finished,
    has_local_suite,
    has_mmlu,
    local_digest,
    mmlu_digest,
    only_finished,
    run_local_suite,
    run_mmlu,
    run_training,
)
from apt_ds.analysis.compare_table import Trial, tabulate
from apt_ds.analysis.result_table import publish
from apt_ds.analysis.variants import OWN, Variant
from apt_ds.config.errors import UserError
from apt_ds.config.methods import METHODS, RECIPE_FULL_EPOCHS, RECIPE_INFERENCE_BATCHES
from apt_ds.config.paths import check_path, shortened
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import OPTIONS, RunConfig
from apt_ds.config.tasks import GLUE_TASKS, INSTRUCTIONS, SQUADS, TEXTS

# what a folder may differ in and still be the same run
INCIDENTAL = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "deepspeed", "trust_remote_code"),
    *("logging_steps", "report", "report_samples", "report_to", "run_name", "logging_dir"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token"),
)


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        methods: methods, each with options of its own.
        sparsities: removed fractions.
        seeds: a row of the table is the mean over them.
        processes: of each run.
        full_learning_rate: of methods that train all weights.
        mmlu_data: a folder of MMLU's CSV files. Empty: MMLU is not measured.
        mmlu_sample: number of questions. 0: all.
        efficiency: whether inference is measured.
        vary: names of options of train.py, each with its values. All combinations are run.
        full_num_train_epochs: of full fine-tuning. 0: as long as the other runs.
        inference_batch_size: batch size of inference. 0: the usual one for the kind of model.
        local_data: a folder of the data of the suite `local`. Empty: the suite is not run.
        local_limit: questions of each of its tasks. 0: all.
        finished_only: whether the table has the runs that have ended, and nothing is started.
    """

    methods: tuple[Variant, ...]
    sparsities: tuple[float, ...]
    seeds: tuple[int, ...]
    processes: int
    full_learning_rate: float
    mmlu_data: str
    mmlu_sample: int
    efficiency: bool
    vary: tuple[tuple[str, ...], ...] = ()
    full_num_train_epochs: float = 0.0
    inference_batch_size: int = 0
    local_data: str = ""
    local_limit: int = 0
    finished_only: bool = False

    def check(self) -> None:
        """Raise UserError for a value that is not allowed."""
        for name, values in (("sparsity", self.sparsities), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise UserError(f"--{name} {','.join(map(str, values))} is not allowed: give each value once")
        for value in self.sparsities:
            if not 0 < value < 1:
                raise UserError(f"--sparsity {value} is not allowed: give numbers above 0 and below 1")
        if self.processes < 1:
            raise UserError(f"--processes {self.processes} is not allowed: give at least 1")
        epochs = self.full_num_train_epochs
        if not (math.isfinite(epochs) and epochs >= 0):
            text = "give a number above 0, or 0 to train as long as the other runs"
            raise UserError(f"--full_num_train_epochs {epochs} is not allowed: {text}")
        if self.inference_batch_size < 0:
            text = "give at least 1, or 0 for the usual size"
            raise UserError(f"--inference_batch_size {self.inference_batch_size} is not allowed: {text}")
        if self.inference_batch_size and not self.efficiency:
            raise UserError("--inference_batch_size requires --efficiency, which measures inference")
        self._check_questions()
        for words in self.vary:
            if len(words) < 2 or len(set(words)) < len(words):
                given = f"--vary {' '.join(words)}" if any(words) else "--vary"
                raise UserError(f"{given}: give the name of an option and its values, nothing twice")
            methods = any(words[0] in dict(variant.options) for variant in self.methods)
            if words[0] in OWN or methods or [other[0] for other in self.vary].count(words[0]) > 1:
                raise UserError(f"--vary {words[0]} is not allowed: it is given elsewhere on this command line")

    def _check_questions(self) -> None:
        """Raise UserError for a number of questions that is not allowed, or data that lacks them."""
        if self.mmlu_data and not os.path.isdir(self.mmlu_data):
            raise UserError(f"--mmlu_data {shortened(self.mmlu_data)!r} is not a folder: give one with dev/ and test/")
        if self.mmlu_sample < 0:
            raise UserError(f"--mmlu_sample {self.mmlu_sample} is not allowed: give at least 1, or 0 for all questions")
        if self.local_limit < 0:
            raise UserError(f"--local_limit {self.local_limit} is not allowed: give at least 1, or 0 for all questions")
        if self.local_data and not os.path.isdir(self.local_data):
            text = "give one with sst2/, plain/ and wikitext2/"
            raise UserError(f"--local_suite {shortened(self.local_data)!r} is not a folder: {text}")
        if self.mmlu_data:
            mmlu_digest(self.mmlu_data, self.mmlu_sample)
        if self.local_data:
            local_digest(self.local_data, self.local_limit)

    def settings(self) -> list[tuple[tuple[str, str], ...]]:
        """All combinations of the varied options' values, as (name, value) pairs."""
        return list(itertools.product(*([(name, value) for value in values] for name, *values in self.vary)))


def compare(comparison: Comparison, words: Sequence[str]) -> list[dict[str, Any]]:
    """Train and evaluate what is missing, and write table.csv, table.json, table.md and table.png.

    Args:
        comparison: what to compare.
        words: options of train.py that all runs share.

    Returns:
        The rows of the table.

    Raises:
        UserError: a mistake in the input, or a run that failed and printed its own error.
    """
    comparison.check()
    shared = resolve(words)
    if shared.output.push_to_hub:
        raise UserError("--push_to_hub does not support a comparison: upload one of its models later with apt-ds-push")
    if comparison.local_data and shared.data.task != INSTRUCTIONS:
        raise UserError(
            f"--local_suite requires --task {INSTRUCTIONS} (got {shared.data.task}): it asks language models"
        )
    comparison = complete(comparison, shared)
    trials = plan(comparison, Path(shared.output.output_dir))
    configs = [configure(comparison, trial, words) for trial in trials]
    for trial, config in zip(trials, configs, strict=True):
        check_finished(trial, config)
    if comparison.finished_only:
        trials = only_finished(comparison, trials)
    else:
        for trial, config in zip(trials, configs, strict=True):
            complete_run(comparison, trial, config)
    speeds = infer(trials, shared, comparison.inference_batch_size) if comparison.efficiency else {}
    about = {"metric": score_name(shared.data.task), "inference_batch_size": comparison.inference_batch_size or None}
    rows = tabulate(trials, speeds, about)
    publish(rows, Path(shared.output.output_dir))
    return rows


def complete_run(comparison: Comparison, trial: Trial, config: RunConfig) -> None:
    """Train a run and ask its model, where that is missing."""
    if not finished(trial):
        run_training(comparison, trial, config)
    if comparison.mmlu_data and not has_mmlu(comparison, trial):
        run_mmlu(comparison, trial, config.model.trust_remote_code)
    if comparison.local_data and not has_local_suite(comparison, trial):
        run_local_suite(comparison, trial, config.model.trust_remote_code)


def complete(comparison: Comparison, shared: RunConfig) -> Comparison:
    """The comparison with the values of the recipe for options that are not stated."""
    epochs = comparison.full_num_train_epochs or RECIPE_FULL_EPOCHS[shared.source.recipe]
    batch, sizes = comparison.inference_batch_size, RECIPE_INFERENCE_BATCHES[shared.source.recipe]
    if comparison.efficiency and not batch and sizes and shared.data.task == INSTRUCTIONS:
        from apt_ds.models.loading import find_base

        anatomy = find_base(
            shared.model.model_name_or_path, shared.data.task, (), shared.model.trust_remote_code
        ).anatomy
        batch = next(size for most, size in sizes if anatomy.num_parameters(anatomy.sizes) <= most)
    return replace(comparison, full_num_train_epochs=epochs, inference_batch_size=batch)


def plan(comparison: Comparison, output: Path) -> list[Trial]:
    """All runs, seed by seed. A method that prunes nothing runs once per seed."""
    trials = []
    for seed in comparison.seeds:
        for method in comparison.methods:
            for sparsity in comparison.sparsities if method.prunes else (0.0,):
                for setting in comparison.settings():
                    words = [method.folder, f"{100 * sparsity:g}", str(seed), *(f"{n}={v}" for n, v in setting)]
                    folder = output / "-".join(words).replace("/", "_")
                    # the options of a run are in a file beside its folder, with a longer name
                    shorter = "give shorter values to --methods and --vary"
                    check_path("the options of a run", f"{folder.name}.yaml", shorter)
                    trials.append(Trial(method.method, sparsity, seed, folder, setting, method.options))
    return trials


def configure(comparison: Comparison, trial: Trial, words: Sequence[str]) -> RunConfig:
    """The configuration of one run."""
    own = [*words, "--method", trial.method, "--sparsity", str(trial.sparsity), "--seed", str(trial.seed)]
    if METHODS[trial.method].get("train") == "all":
        own += ["--learning_rate", str(comparison.full_learning_rate)]
        if trial.method == "full" and comparison.full_num_train_epochs:
            own += ["--num_train_epochs", str(comparison.full_num_train_epochs), "--max_steps", "-1"]
    own += [word for name, value in (*trial.options, *trial.setting) for word in (f"--{name}", value)]
    return resolve(own).replace(output_dir=str(trial.folder), overwrite_output_dir=True, report=False, run_report=False)


def check_finished(trial: Trial, config: RunConfig) -> None:
    """Raise UserError if a finished run was made with other options."""
    if not finished(trial):
        return
    there = resolve(["--config", str(trial.folder / "config.yaml"), "--deepspeed", config.distributed.deepspeed])
    for name in OPTIONS:
        if name not in INCIDENTAL and there.flag(name) != config.flag(name):
            raise UserError(
                f"{trial.folder} holds a run with --{name} {there.flag(name)}, not {config.flag(name)}; "
                "choose another --output_dir or remove the folder"
            )


def infer(trials: list[Trial], shared: RunConfig, batch: int = 0) -> dict[str, Any]:
    """Inference speed and memory of one model per row by folder name, interleaved in one process."""
    first: dict[tuple[object, ...], Trial] = {}
    for trial in trials:
        first.setdefault(trial.row, trial)
    from apt_ds.eval import inference_cost

    folders = {trial.folder.name: str(trial.folder / "model") for trial in first.values()}
    return inference_cost.measure(
        folders, shared.optim.bf16, inference_cost.TimingPlan(batch=batch), shared.model.trust_remote_code
    )


def score_name(task: str) -> str | None:
    """What a task's score is, for the table's header; None where a task has loss and perplexity alone."""
    if task in GLUE_TASKS:
        from apt_ds.data.glue import GLUE

        return GLUE[task].main
    names = dict.fromkeys(SQUADS, "F1") | dict.fromkeys(TEXTS, "ROUGE-Lsum")
    return names.get(task)
