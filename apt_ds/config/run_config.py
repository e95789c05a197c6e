"""The run's configuration: one dataclass, its checks, one kind of error. `resolve.py` makes it from what users write.

A field's metadata carries its group, help and allowed values; the help page, the conversion of text and the checks are
all made from it.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from apt_ds.config.errors import UserError
from apt_ds.config.option_types import (
    BELOW_ONE,
    BITS,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_ONE,
    ZERO_TO_ONE,
    OrAutomatic,
    Range,
    SomeOf,
    choice,
    option,
    split_commas,
)
from apt_ds.config.presets import METHODS, RECIPES
from apt_ds.config.tasks import INSTRUCTIONS, TASKS

BLOCKS = ("heads", "neurons", "hidden")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
AUTO = "auto"


@dataclass(frozen=True)
class RunConfig:
    """Everything a run decides. Make one with `resolve.resolve`, which also checks it."""

    preset: str = option("source", "", "preset to start from; without a model it is quickstart")

    method: str = choice(
        "source",
        ", ".join(METHODS),
        "adaptive pruning and tuning, or a baseline: LoRA, full fine-tuning, LoRA then prune by Fisher information, "
        "prune by first-order Taylor then LoRA",
    )

    recipe: str = choice(
        "source",
        ", ".join(RECIPES),
        "how to prune: the choices that measure best here, or every choice of the paper. Stated options win over it",
    )

    task: str = choice("source", ", ".join(TASKS), "what the model learns to do")
    model_name_or_path: str = option("model", "", "a hub name, a folder, builtin:smollm2 or builtin:minilm")
    attn_implementation: str = choice("model", "sdpa, eager, flash_attention_2", "attention kernel")
    base_bits: int = option("model", 16, "bits the frozen base is held in; 4: NF4, 8: int8, 16: as it computes", BITS)
    export_bits: int = option("model", 16, "bits of the written model's projections: 16, or base_bits again", BITS)
    trust_remote_code: bool = option("model", False, "run code of the model's folder where its tokenizer needs it")
    data_path: str = option(
        "data", "", "training data: a hub name, a file, a folder with train.* and validation.*, or builtin:instructions"
    )
    eval_data_path: str = option("data", "", "evaluation data; empty: that of data_path, or training examples held out")
    eval_size: int = option("data", 0, "examples to evaluate on; 0: all, or 100 of the training examples", NOT_NEGATIVE)
    max_seq_length: int = option("data", 512, "tokens an example is cut to", Range(2))
    max_target_length: int = option("data", 128, "tokens of an answer that is written (T5)", Range(2))
    doc_stride: int = option("data", 128, "tokens that windows of a long context share (SQuAD)", COUNT)

    packing: bool = option("data", False, "several short examples in one row; changes speed, not results")

    perplexity_path: str = option("data", "", "a text file to take perplexity on, before and after")
    perplexity_length: int = option("data", 1024, "tokens in one of its blocks", Range(2))
    perplexity_blocks: int = option("data", 0, "blocks to use, spread over the file; 0: all", NOT_NEGATIVE)

    output_dir: str = option("run", "apt_out", "a folder for the model, its checkpoints and logs")
    overwrite_output_dir: bool = option("run", False, "write into a folder that is not empty")
    deepspeed: str = option("run", "", "the path of a DeepSpeed JSON, such as ds_configs/zero3.json")
    seed: int = option("run", 128, "seed of everything random", NOT_NEGATIVE)
    bf16: bool = option("run", False, "compute in bfloat16")
    fp16: bool = option("run", False, "compute in float16 with loss scaling")
    gradient_checkpointing: bool = option("run", False, "recompute activations in backward to save memory")
    logging_steps: int = option("run", 1, "optimizer steps between two log lines", COUNT)
    max_nonfinite_steps: int = option("run", 5, "non-finite losses in a row that end the run", COUNT)
    report: bool = option("run", True, "compare the model before and after, with generated samples")
    report_samples: int = option("run", 2, "prompts the report generates from", NOT_NEGATIVE)
    eval_steps: int = option("run", 0, "optimizer steps between two evaluations; 0 or less: only at the ends")
    reference_score: float = option(
        "run", 0.0, "score of a reference: tells when 97 % of it were first reached; 0: there is none", NOT_NEGATIVE
    )
    save_steps: int = option("run", 500, "optimizer steps between two checkpoints; 0 or less: only when stopped")
    save_total_limit: int = option("run", 0, "checkpoints to keep; 0: all", NOT_NEGATIVE)
    resume_from_checkpoint: str = option("run", "", "go on from a checkpoint: last, or its folder")
    profile: bool = option("run", False, "tell at the end where the time of a step goes")
    timeout: int = option("run", 600, "seconds without a sign of life after which a rank is given up", COUNT)
    dry_run: bool = option(
        "run", False, "only estimate the memory a rank needs and whether it is there; see world_size"
    )
    world_size: int = option("run", 0, "processes a dry run is for; 0: as launched", NOT_NEGATIVE)
    device_memory: float = option("run", 0.0, "GB of a GPU a dry run is for; 0: this machine's device", NOT_NEGATIVE)
    host_memory: float = option("run", 0.0, "GB of a node a dry run is for; 0: this one", NOT_NEGATIVE)
    local_rank: int = -1  # the deepspeed launcher passes it; not for users

    train: str = choice("training", "adapters, all", "what is trained; all weights only with --pruning none")
    learning_rate: float = option("training", 1e-4, "peak learning rate", POSITIVE)
    per_device_train_batch_size: int = option("training", 4, "examples per device and micro-batch", COUNT)
    per_device_eval_batch_size: int = option("training", 8, "examples per device when evaluating", COUNT)
    gradient_accumulation_steps: int = option("training", 1, "micro-batches per optimizer step", COUNT)
    num_train_epochs: float = option("training", 3.0, "passes over the data", POSITIVE)
    max_steps: int = option("training", -1, "optimizer steps; -1: as num_train_epochs says", Range(-1))
    weight_decay: float = option("training", 0.0, "AdamW weight decay", NOT_NEGATIVE)
    adam_beta1: float = option("training", 0.9, "AdamW beta 1", BELOW_ONE)
    adam_beta2: float = option("training", 0.999, "AdamW beta 2", BELOW_ONE)
    adam_epsilon: float = option("training", 1e-8, "AdamW epsilon", POSITIVE)
    max_grad_norm: float = option("training", 1.0, "norm gradients are clipped to; 0: never", NOT_NEGATIVE)
    lr_scheduler_type: str = choice("training", "cosine, linear, constant", "learning rate after warm-up")
    warmup_ratio: float = option("training", 0.03, "fraction of all steps spent warming up", BELOW_ONE)
    warmup_steps: int = option("training", 0, "steps of warm-up; above 0 it wins over warmup_ratio", NOT_NEGATIVE)
    optim: str = choice("training", "adamw_torch, adamw_8bit, paged_adamw_8bit", "AdamW, moments in 32 or 8 bits")

    sparsity: float = option("pruning", 0.3, "fraction of the model's parameters to remove", BELOW_ONE)
    pruning: str = choice(
        "pruning", "pretuning, gradual, posttuning, none", "cut before, while or after tuning (then tune on), or never"
    )
    prune_blocks: str = option("pruning", "heads,neurons", "kinds of block that may go", SomeOf(BLOCKS))
    prune_scope: str = choice(
        "pruning", "all, adapted", "where blocks may go: every sublayer, or only sublayers that hold an adapter"
    )
    structure: str = choice("pruning", "uniform, adaptive", "same sizes in every layer, or sizes by layer")
    align: int = option("pruning", 0, "kept sizes are multiples of it; 0: by the model's size", NOT_NEGATIVE)
    calibration_steps: int = option("pruning", 32, "optimizer steps scored before a cut all at once", COUNT)
    pruning_phase: float = option(
        "pruning", 0.5, "fraction of all steps that prune and grow ranks, or come before a posttuning cut", UP_TO_ONE
    )
    mask_step: float = option(
        "pruning", 0.0, "change of a mask per step; 0: 0.01, or more where the steps after pruning require", ZERO_TO_ONE
    )
    prune_every: int = option("pruning", 20, "optimizer steps between cuts and rank growth", COUNT)
    score: str = choice(
        "pruning", "salience, fisher, taylor, random", "what blocks are ranked by; random is the control"
    )
    salience_product: str = choice(
        "pruning", "per_example, batch", "activations times gradients: per example, or each summed over the batch first"
    )
    kurtosis: str = choice("pruning", "normalized, literal, off", "kurtosis term of the score")
    kurtosis_weight: float = option(
        "pruning", -1.0, "factor of the kurtosis term; -1: 0.1 for normalized, 1 for literal", OrAutomatic(NOT_NEGATIVE)
    )
    salience_decay: float = option("pruning", 0.85, "weight of the past in the score's moving average", BELOW_ONE)
    calibration_average: str = choice(
        "pruning", "mean, moving", "average of the scores before a one-shot cut: plain mean or moving average"
    )
    optimizer_state: str = choice("pruning", "carry, reset", "Adam moments when shapes change")
    defer_cuts: bool = option("pruning", False, "gradual: mask only, and cut at the end of the pruning phase")
    distill: bool = option("pruning", False, "learn from the unpruned model within while gradually pruning")
    teacher: str = choice(
        "pruning",
        "unpruned, shrinking",
        "model that --distill learns from. unpruned: the teacher keeps every block. All cuts then wait until the "
        "pruning phase ends, even with --defer_cuts false. The phase costs the time and memory of the full model. "
        "shrinking: each cut removes its blocks from the teacher too, and later steps of the phase get cheaper",
    )
    layer_match: str = choice(
        "pruning",
        "step, previous",
        "how --distill picks the student layer for each teacher layer. step: the nearest one on the hidden states of "
        "the same step. Gradient accumulation then needs a second forward pass of the student. previous: the nearest "
        "one on the step before, without a second pass",
    )

    rank: int = option("adapter", 8, "initial rank", COUNT)
    max_rank: int = option("adapter", 64, "rank an adapter may grow to", COUNT)
    rank_growth: str = choice(
        "adapter",
        "importance, even, none",
        "which adapters grow: the most important half, all, or none",
    )
    rank_budget: float = option("adapter", 4.0, "adapter parameters at the end over those at the start", COUNT)
    adapter_targets: str = option(
        "adapter",
        "auto",
        "projections that get an adapter; auto: q,v, and up too for all tasks but instructions",
        SomeOf((AUTO, *PROJECTIONS)),
    )

    @property
    def grows_ranks(self) -> bool:
        """Whether adapters grow."""
        return self.rank_growth != "none"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of block that may go: some of heads, neurons, hidden, in this order."""
        return tuple(kind for kind in BLOCKS if kind in split_commas(self.prune_blocks))

    @property
    def kurtosis_factor(self) -> float:
        """The factor of the kurtosis term: `kurtosis_weight`, or the default of `outlier`."""
        if self.kurtosis_weight >= 0:
            return self.kurtosis_weight
        return 1.0 if self.kurtosis == "literal" else 0.1

    @property
    def targets(self) -> tuple[str, ...]:
        """The projections that get an adapter: some of q, k, v, o, gate, up, down, in this order."""
        named = split_commas(self.adapter_targets)
        if named == [AUTO]:
            named = ["q", "v"] if self.task == INSTRUCTIONS else ["q", "v", "up"]
        return tuple(name for name in PROJECTIONS if name in named)

    @property
    def cuts_wait(self) -> bool:
        """Whether gradual pruning cuts nothing before its phase ends. An unpruned teacher needs every block until then.

        It takes precedence over `defer_cuts`.
        """
        return self.defer_cuts or (self.distill and self.teacher == "unpruned")

    @property
    def one_row(self) -> bool:
        """Whether all packed examples share a row: flash attention tells examples apart in a single one only."""
        return self.attn_implementation == "flash_attention_2"

    def check(self) -> None:
        """Raise `UserError` for the first value that is not allowed or contradicts another."""
        for name, spec in OPTIONS.items():
            allowed, value = spec.metadata["allowed"], getattr(self, name)
            if allowed is not None and not allowed.holds(value):
                raise UserError(f"--{name} {value!r} is not allowed: give {allowed}")
        for name in ("model_name_or_path", "data_path", "output_dir", "deepspeed"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing: give {OPTIONS[name].metadata['help']}")
        if not Path(self.deepspeed).is_file():
            raise UserError(
                f"--deepspeed {self.deepspeed!r} is not a file: give {OPTIONS['deepspeed'].metadata['help']}"
            )
        if self.max_steps == 0:
            raise UserError("--max_steps 0 is not allowed: give at least 1, or -1 for --num_train_epochs")
        if self.bf16 and self.fp16:
            raise UserError("--bf16 true and --fp16 true exclude each other: give at most one")
        if self.train == "all" and (self.pruning != "none" or self.grows_ranks):
            raise UserError("--train all goes with --pruning none and --rank_growth none: --method full says all three")
        if self.pruning == "gradual" and self.score in ("fisher", "taylor"):
            raise UserError(
                f"--pruning gradual with --score {self.score} is not there: give --score salience or random"
            )
        if self.distill and self.pruning != "gradual":
            raise UserError(f"--distill goes with --pruning gradual, not {self.pruning}: the teacher lives as it lasts")
        if self.pruning == "posttuning" and self.score == "taylor":
            raise UserError("--pruning posttuning with --score taylor is not there: give --score fisher or salience")
        if self.packing and self.task != INSTRUCTIONS:
            raise UserError(f"--packing true with --task {self.task} is not there: it is for causal language models")
        if self.packing and self.score == "fisher":
            raise UserError("--packing true with --score fisher is not there: it needs a row for each example")
        if self.grows_ranks and self.rank > self.max_rank:
            raise UserError(f"--rank {self.rank} is not allowed: give at most --max_rank {self.max_rank}")

    def to_yaml(self) -> str:
        """The options as YAML, which `--config` reads back to the same configuration."""
        return yaml.safe_dump({name: getattr(self, name) for name in OPTIONS}, sort_keys=False)

    def save(self, path: str | Path) -> None:
        """Write `to_yaml()` to `path`. Raises OSError."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")


OPTIONS: dict[str, Field[Any]] = {spec.name: spec for spec in fields(RunConfig) if spec.metadata}
