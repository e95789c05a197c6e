"""What one checkpoint holds, and whether a run may resume from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.config.option_types import spelled_out
from apt_ds.config.run_config import OPTIONS, RunConfig
from apt_ds.models.base_config import first_difference

# Options that a resumed run may change. Fingerprints and counts compare what a path or a batch size decides.
FREE_OPTIONS = {
    *("preset", "recipe", "model_name_or_path", "data_path", "eval_data_path", "perplexity_path", "output_dir"),
    *("calibration_path", "dataloader_num_workers"),
    *("overwrite_output_dir", "deepspeed", "gradient_checkpointing", "attn_implementation", "logging_steps"),
    *("max_nonfinite_steps", "report", "report_samples", "per_device_eval_batch_size", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "packing", "profile", "export_bits"),
    "export_quantization",
    *("save_steps", "save_total_limit", "resume_from_checkpoint", "timeout", "eval_steps", "reference_score"),
    *("run_report", "mmlu_path", "mmlu_limit"),
    *("teacher_cache", "data_cache_dir", "overwrite_cache", "preprocessing_num_workers"),
    *("trust_remote_code", "deterministic", "dry_run", "world_size", "device_memory", "host_memory"),
    *("export_adapters", "export_format"),
    *("report_to", "run_name", "logging_dir", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token"),
}
COUNTS = {
    "global_batch": "processes x --per_device_train_batch_size x --gradient_accumulation_steps",
    "total_steps": "--max_steps or --num_train_epochs, in steps,",
}
PARTS = "stream_parts"  # the count of processes, in runs with --streaming
FINGERPRINTED = {
    "train": "the training data",
    "held_out": "the evaluation data",
    "corpus": "the text of --perplexity_path",
    "calibration": "the data of --calibration_path",
    "model": "the base model",
    "mmlu": "the set of questions of --mmlu_path and --mmlu_limit",
    "teacher": "the cache of the dense model's probabilities",
}


@dataclass
class Checkpoint:
    """A run at a step boundary.

    Attributes:
        step: optimizer steps that the run has done.
        run: every option's value by flag.
        counts: numbers that a resumed run must share (see `COUNTS`).
        fingerprints: hashes of what the run reads (see `FINGERPRINTED`). A resumed run must share them.
        values: JSON values by member of the run's state.
        tensors: tensors by name, in groups. Each group has its own files.
        shape: sizes and ranks of the model, for people.
        metrics: the lines of `metrics.jsonl` so far.
        path: the folder that the checkpoint was read from.
        base: fields of the base model's configuration that decide its function. A resumed run must share them.
        evaluation: evaluation of the model at `step`, if the run took one after it wrote the checkpoint.
    """

    step: int
    run: dict[str, Any]
    counts: dict[str, int]
    fingerprints: dict[str, str]
    values: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    shape: dict[str, Any] = field(default_factory=dict)
    metrics: bytes = b""
    path: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None

    @property
    def started(self) -> datetime | None:
        """Time of the run's first start by rank 0's clock. None if the checkpoint does not record it."""
        text = self.values.get("started")
        return datetime.fromisoformat(text) if text else None

    def check(self, run: RunConfig, counts: dict[str, int], fingerprints: dict[str, str]) -> None:
        """Compare the checkpoint with the run that resumes from it.

        Raises:
            UserError: an option, a count or a fingerprint differs. The message names the first one.
        """
        for name, spec in OPTIONS.items():
            then, now = spelled_out(spec, self.run.get(name, spec.default)), run.flag(name)
            if name not in FREE_OPTIONS and then != now:
                raise UserError(f"{self.path} was made with --{name} {then!r}, this run says {now!r}: use the former")
        for name, label in COUNTS.items():
            then, now = self.counts.get(name), counts[name]
            if then != now:
                raise UserError(f"{self.path}: {label} made {then}, this run makes {now}: they must be equal")
        then, now = self.counts.get(PARTS, 0), counts.get(PARTS, 0)
        if then != now:
            raise UserError(
                f"{self.path} was made by {then} processes, this run has {now}: --streaming gives each process a "
                "part of the data, so their number must stay"
            )
        for name, fingerprint in fingerprints.items():
            # absent from checkpoints of earlier versions, as is the option
            if name not in self.fingerprints and fingerprint:
                raise UserError(f"{self.path} does not record {FINGERPRINTED[name]}: resume without it")
            if self.fingerprints.get(name, "") != fingerprint:
                raise UserError(
                    f"{self.path}: {FINGERPRINTED[name]} is not what the checkpoint was made with. Give the same"
                )

    def check_base(self, now: dict[str, Any]) -> None:
        """Compare the base model's configuration with the checkpoint's.

        Args:
            now: what `base_config.decisive` returns for the base model of the run.

        Raises:
            UserError: a field differs. The message names it with both values.
        """
        if differing := first_difference(self.base, now):
            name, before, after = differing
            raise UserError(
                f"{self.path} was made from a base model with {name} {before!r} in its config.json. That of "
                f"--model_name_or_path has {after!r}. Give the same model"
            )
