"""All options of a run, in groups. A field's metadata holds its flag, help and allowed values.

The help page, the conversion of text and the checks are made from that metadata. A flag is the name of its field,
unless the metadata names another.
"""

from __future__ import annotations

from dataclasses import dataclass

from apt_ds.config.methods import METHODS, RECIPES
from apt_ds.config.option_types import (
    BATCH,
    BELOW_ONE,
    BITS,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    TEMPERATURE,
    OrZero,
    Range,
    choice,
    option,
)
from apt_ds.config.tasks import TASKS

FLASH, VARLEN = "flash_attention_2", "varlen"  # kernels that take the starts of packed examples


@dataclass(frozen=True)
class SourceOptions:
    """Where options come from."""

    preset: str = option("", "preset to start from; quickstart where no model is given")
    method: str = choice(
        ", ".join(METHODS),
        "apt: adaptive pruning and tuning. Baselines: lora; full: full fine-tuning; lora_prune: LoRA, then pruning by "
        "Fisher information; prune_lora: pruning by first-order Taylor, then LoRA; flap, wanda_sp: pruning by FLAP or "
        "structured Wanda, then LoRA; mask_tuning: full fine-tuning, then pruning by Fisher information; "
        "prune_distill: learned gates and distillation, all weights trained (CoFi); lora_prune_distill: the same with "
        "adapters. apt_*: apt without one part",
    )
    recipe: str = choice(
        ", ".join(RECIPES),
        "how to prune: the choices that measure best here, or every choice of the paper. Stated options win over it",
    )


@dataclass(frozen=True)
class ModelOptions:
    """Which model is trained, and in which precision its frozen weights are stored."""

    model_name_or_path: str = option("", "a hub name, a folder, builtin:smollm2 or builtin:minilm")
    attn_implementation: str = choice(
        f"sdpa, eager, {FLASH}, {VARLEN}, auto",
        "attention kernel; with --packing, sdpa becomes varlen where GPU and model support it. auto: eager on a CPU, "
        "sdpa on a GPU",
    )
    base_bits: int = option(16, "bits of the frozen base weights; 4: NF4, 8: int8, 16: the dtype of the run", BITS)
    export_bits: int = option(16, "bits of the written model's projections: 16, or the value of base_bits", BITS)
    trust_remote_code: bool = option(False, "run code of the model's folder where its tokenizer needs it")

    @property
    def one_row(self) -> bool:
        """Whether all packed examples share a row: variable-length kernels need no padding between rows."""
        return self.attn_implementation in (FLASH, VARLEN)


@dataclass(frozen=True)
class DataOptions:
    """What the model learns, and what it is evaluated on."""

    task: str = choice(", ".join(TASKS), "what the model learns to do")
    data_path: str = option(
        "",
        "training data: a hub name, a file, a folder with train.* and validation.*, or builtin:instructions. "
        "a.jsonl:0.7,b.txt:0.3 mixes sources of --task instructions by weight. A .txt file or a column `text` is plain "
        "text, of which every token is trained",
    )
    eval_data_path: str = option(
        "", "evaluation data, in the forms of data_path; empty: that of data_path, or training examples held out"
    )
    eval_size: int = option(0, "examples to evaluate on; 0: all, or 100 of the training examples", NOT_NEGATIVE)
    max_seq_length: int = option(512, "maximum tokens per example; longer examples are truncated", Range(2))
    max_target_length: int = option(128, "maximum tokens of a written answer (T5)", Range(2))
    doc_stride: int = option(128, "tokens that windows of a long context share (SQuAD)", COUNT)
    packing: bool = option(False, "put several examples of a step into one row; changes speed, not results")
    perplexity_path: str = option(
        "", "text files to measure perplexity on, before and after: a.txt,b.txt, or a slice of lines: c.txt[50%:]"
    )
    perplexity_length: int = option(1024, "tokens per block of these texts", Range(2))
    perplexity_blocks: int = option(0, "blocks of each text to use, spread over it; 0: all", NOT_NEGATIVE)
    calibration_path: str = option(
        "",
        "data that scores before a one-shot cut, --repair, --allocate kl and --scale_steps read, in the forms of "
        "data_path; empty: the training data",
    )
    group_by_length: bool = option(False, "give a step examples of similar length, so that less of it is padding")
    dataloader_num_workers: int = option(
        0, "threads that make the batches of coming steps while a step computes; 0: none", NOT_NEGATIVE
    )
    mmlu_path: str = option("", "a folder of MMLU's CSV files to measure accuracy on, before and after")
    mmlu_limit: int = option(0, "questions of each subject of that folder; 0: all", NOT_NEGATIVE)
    data_cache_dir: str = option(
        "", "folder for large tokenized data sets; empty: below HF_DATASETS_CACHE, or ~/.cache/apt_ds/data"
    )
    overwrite_cache: bool = option(False, "tokenize again instead of reading the cache")
    preprocessing_num_workers: int = option(
        0, "processes of a node that tokenize; 0: its number of processors, fewer for small data sets", NOT_NEGATIVE
    )
    streaming: bool = option(
        False,
        "read the training data while training, for data larger than the disk. Each process reads a part. data_path "
        "may also name addresses http(s)://....jsonl. Requires --max_steps",
    )
    shuffle_buffer_size: int = option(
        1000, "with --streaming: examples of a source that a process reads and shuffles at once; 1: no shuffling", COUNT
    )
    rewrite_answers: bool = option(
        False,
        "train on the dense model's own answers, written once and kept in the data cache. It writes the last answer of "
        "each conversation that the run trains. Earlier answers are then context. Plain text and evaluation data stay",
    )
    rewrite_max_new_tokens: int = option(
        256, "with --rewrite_answers: tokens of an answer. A longer one is cut and trains no end of turn", COUNT
    )
    rewrite_temperature: float = option(
        0.0, "with --rewrite_answers: 0 takes the most probable token each time, above 0 samples", OrZero(TEMPERATURE)
    )


@dataclass(frozen=True)
class OptimOptions:
    """How the weights are trained."""

    trainable: str = choice("adapters, all", "what is trained: low-rank adapters, or all weights", flag="train")
    learning_rate: float = option(1e-4, "peak learning rate", Range(0, 1000, low_open=True))
    per_device_train_batch_size: int = option(4, "examples per device and micro-batch", BATCH)
    per_device_eval_batch_size: int = option(8, "examples per device when evaluating", BATCH)
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step", BATCH)
    num_train_epochs: float = option(
        3.0,
        "passes over the data; of a mixture: times all of its rows together",
        Range(0, 1_000_000, low_open=True),
    )
    max_steps: int = option(-1, "optimizer steps; -1: by num_train_epochs", Range(-1))
    weight_decay: float = option(0.0, "AdamW weight decay", NOT_NEGATIVE)
    adam_beta1: float = option(0.9, "AdamW beta 1", BELOW_ONE)
    adam_beta2: float = option(0.999, "AdamW beta 2", BELOW_ONE)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", POSITIVE)
    max_grad_norm: float = option(1.0, "norm to clip gradients to; 0: no clipping", NOT_NEGATIVE)
    lr_scheduler_type: str = choice("cosine, linear, constant", "learning rate after warm-up")
    warmup_ratio: float = option(0.03, "fraction of all steps spent warming up", BELOW_ONE)
    warmup_steps: int = option(0, "steps of warm-up; above 0 it replaces warmup_ratio", NOT_NEGATIVE)
    optimizer: str = choice(
        "adamw_torch, adamw_8bit, paged_adamw_8bit", "AdamW, with moments of 32 or 8 bits", flag="optim"
    )
    bf16: bool = option(False, "compute in bfloat16")
    fp16: bool = option(False, "compute in float16 with loss scaling")
    gradient_checkpointing: bool = option(False, "recompute activations in backward to save memory")
    deterministic: bool = option(
        False, "the same command gives the same bits on GPUs too, with as many ranks on as many nodes; slower"
    )
    max_nonfinite_steps: int = option(5, "consecutive steps with a non-finite loss that end the run", COUNT)
    seed: int = option(128, "seed of everything random", SEED)

    def global_batch(self, world_size: int) -> int:
        """Examples of one optimizer step over `world_size` processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size


@dataclass(frozen=True)
class DistributedOptions:
    """DeepSpeed, the watchdog, and the memory estimate of a dry run."""

    deepspeed: str = option("", "the path of a DeepSpeed JSON, such as ds_configs/zero3.json")
    timeout: int = option(
        600,
        "seconds without a sign of life after which a rank counts as lost; under NCCL at most 60",
        Range(1, 7 * 24 * 3600),
    )
    dry_run: bool = option(False, "only estimate the memory that a rank needs and whether it is available")
    world_size: int = option(0, "processes of the run that --dry_run estimates; 0: as launched", NOT_NEGATIVE)
    device_memory: float = option(0.0, "GB of the GPU that --dry_run assumes; 0: this machine's device", NOT_NEGATIVE)
    host_memory: float = option(0.0, "GB of the node that --dry_run assumes; 0: this machine", NOT_NEGATIVE)
    local_rank: int = -1  # the deepspeed launcher passes it; not for users
