"""All options of a run, in groups. A field's metadata holds its flag, help and allowed values.

The help page, the conversion of text and the checks are made from that metadata. A flag is the name of its field,
unless the metadata names another.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from apt_ds.config.tasks import TASKS

BLOCKS = ("heads", "neurons", "hidden", "experts")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
QUANTIZATIONS = ("none", "fp8", "w4a16", "nf4")
AUTO = "auto"
TRACKERS = ("none", "tensorboard", "wandb", "mlflow")
AUTO_FORM, STOCK, ADAPTIVE, PADDED = EXPORT_FORMATS = ("auto", "stock", "adaptive", "padded")
NOT_STOCK = (
    "--export_format stock: no stock class has the sizes that the layers keep; give padded, which fills them up with "
    "zeros, or adaptive"
)
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
        0.0, "with --rewrite_answers: 0 takes the most probable token each time, above 0 samples", NOT_NEGATIVE
    )


@dataclass(frozen=True)
class OptimOptions:
    """How the weights are trained."""

    trainable: str = choice("adapters, all", "what is trained: low-rank adapters, or all weights", flag="train")
    learning_rate: float = option(1e-4, "peak learning rate", POSITIVE)
    per_device_train_batch_size: int = option(4, "examples per device and micro-batch", COUNT)
    per_device_eval_batch_size: int = option(8, "examples per device when evaluating", COUNT)
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step", COUNT)
    num_train_epochs: float = option(
        3.0, "passes over the data; of a mixture: times all of its rows together", POSITIVE
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
    seed: int = option(128, "seed of everything random", NOT_NEGATIVE)

    def global_batch(self, world_size: int) -> int:
        """Examples of one optimizer step over `world_size` processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size


@dataclass(frozen=True)
class PruningOptions:
    """Which blocks are removed, when, and what a teacher adds."""

    sparsity: float = option(
        0.3,
        "fraction of the prunable parameters (all but embeddings) to remove. The result never keeps more than this "
        "budget",
        BELOW_ONE,
    )
    mode: str = choice(
        "pretuning, gradual, posttuning, none",
        "remove blocks before, while or after tuning (then tune on), or never",
        flag="pruning",
    )
    prune_blocks: str = option(
        "heads,neurons", "kinds of block that may be removed. experts: whole experts of a mixture", SomeOf(BLOCKS)
    )
    prune_scope: str = choice(
        "all, adapted", "where blocks may be removed: every sublayer, or only sublayers that hold an adapter"
    )
    structure: str = choice("uniform, adaptive", "same sizes in every layer, or sizes by layer")
    allow_empty_layers: bool = option(
        False, "let an attention or feed-forward sublayer lose all its blocks, with --structure adaptive"
    )
    align: int = option(
        0, "kept sizes are multiples of it; 0: at least 32 where the budget permits, 64 for 4 bits", NOT_NEGATIVE
    )
    calibration_steps: int = option(32, "optimizer steps scored before a one-shot cut", COUNT)
    pruning_phase: float = option(0.5, "length of the pruning phase as a fraction of all steps", UP_TO_ONE)
    mask_step: float = option(
        0.0, "change of a mask per step; 0: 0.01, or more where the steps after pruning require", ZERO_TO_ONE
    )
    prune_every: int = option(20, "optimizer steps between cuts and rank growth", COUNT)
    score: str = choice(
        "salience, fisher, taylor, random, flap, wanda_sp, obs, l0",
        "how blocks are ranked; obs: by what removal costs after a repair; random is the control. l0: gates that "
        "gradual pruning trains (CoFi)",
    )
    salience_product: str = choice(
        "per_example, batch", "activations times gradients: per example, or each summed over the batch first"
    )
    kurtosis: str = choice("normalized, literal, off", "kurtosis term of the score")
    kurtosis_weight: float = option(
        -1.0, "factor of the kurtosis term; -1: 0.1 for normalized, 1 for literal", OrAutomatic(NOT_NEGATIVE)
    )
    salience_decay: float = option(0.85, "weight of the past in the score's moving average", BELOW_ONE)
    calibration_average: str = choice(
        "mean, moving", "average of the scores before a one-shot cut: plain mean or moving average"
    )
    optimizer_state: str = choice("carry, reset", "Adam moments when shapes change")
    defer_cuts: bool = option(False, "gradual pruning only masks, and cuts once at the end of the pruning phase")
    distill: str = choice(
        "none, layers, logits",
        "what the student learns from beside the data. layers: self-distillation while gradual pruning lasts. Its "
        "teacher shares the frozen weights and runs without masks. logits: the dense model's next-token "
        "probabilities, for --task instructions with any --pruning. true means layers, false none",
        switch="layers",
    )
    teacher: str = choice(
        "unpruned, shrinking",
        "model that --distill layers learns from. unpruned: the teacher keeps every block. All cuts then wait until "
        "the pruning phase ends, even with --defer_cuts false. The phase costs the time and memory of the full model. "
        "shrinking: each cut removes its blocks from the teacher too, and later steps of the phase get cheaper",
    )
    layer_match: str = choice(
        "step, previous",
        "how --distill layers picks the student layer for each teacher layer. step: the nearest one on the hidden "
        "states of the same step. Gradient accumulation then needs a second forward pass of the student. previous: the "
        "nearest one on the step before, without a second pass",
    )
    repair: str = choice(
        "none, ls",
        "ls: at a cut, least squares set the weights that read what is removed so that outputs change the least",
    )
    repair_examples: int = option(256, "calibration examples that --repair and --score obs read", COUNT)
    tensor_parallel: int = option(
        1, "GPUs that will share the served model: kept heads, key/value heads and neurons divide by it (vLLM)", COUNT
    )
    distill_weight: float = option(
        0.5,
        "with --distill logits: part of the distance to the dense model in the loss; the data has the rest",
        UP_TO_ONE,
    )
    distill_temperature: float = option(
        1.0, "with --distill logits: temperature of both probability distributions", POSITIVE
    )
    distill_top_k: int = option(
        64, "with --distill logits: tokens whose probability is known for each trained token; 6 bytes each", COUNT
    )
    teacher_cache: str = option(
        "", "with --distill logits: folder of the dense model's probabilities; empty: one below data_cache_dir"
    )
    teacher_source: str = choice(
        "cache, live",
        "with --distill logits: where the dense model's probabilities come from. cache: computed once before the first "
        "step, then read from the disk. live: every rank keeps the whole dense model in memory, in base_bits, and runs "
        "it on every batch",
    )
    pruning_start: float = option(
        0.0,
        "fraction of all steps that gradual pruning waits, so that the task is learnt first. Masks, growing ranks and "
        "the teacher begin then, and pruning_phase counts from there",
        BELOW_ONE,
    )
    allocate: str = choice(
        "score, kl",
        "kl: before a one-shot cut, change the sizes that the score gives as long as the masked model's predictions "
        "come nearer to the dense model's on calibration data",
    )
    allocate_evaluations: int = option(
        300, "forward passes over 2,048 calibration tokens that --allocate kl may take", Range(20)
    )
    scale_steps: int = option(
        0, "steps that learn a factor of every kept head and neuron before a one-shot cut; 0: none", NOT_NEGATIVE
    )

    gate_learning_rate: float = option(
        0.0, "learning rate of the gates of --score l0; 0: 0.1, or more in a short pruning phase", NOT_NEGATIVE
    )

    @property
    def prunes(self) -> bool:
        """Whether any block is to be removed."""
        return self.mode != "none" and self.sparsity > 0

    @property
    def self_distills(self) -> bool:
        """Whether gradual pruning has a teacher that shares the student's weights."""
        return self.distill == "layers"

    @property
    def dense_teacher(self) -> bool:
        """Whether the student learns the next-token probabilities of the dense model."""
        return self.distill == "logits"

    @property
    def repairs(self) -> bool:
        """Whether cuts repair the weights that read what they remove."""
        return self.prunes and self.repair != "none"

    @property
    def allocates(self) -> bool:
        """Whether the sizes of a cut are searched by the divergence from the dense model."""
        return self.prunes and self.allocate == "kl"

    @property
    def scales(self) -> bool:
        """Whether factors of the kept blocks are learnt."""
        return self.prunes and self.scale_steps > 0

    @property
    def gradual(self) -> bool:
        """Whether blocks are removed while the model tunes."""
        return self.prunes and self.mode == "gradual"

    @property
    def learns_gates(self) -> bool:
        """Whether the pruning phase trains gates that decide at its end."""
        return self.gradual and self.score == "l0"

    @property
    def one_shot(self) -> bool:
        """Whether all blocks are removed at once."""
        return self.prunes and self.mode in ("pretuning", "posttuning")

    @property
    def block_kinds(self) -> tuple[str, ...]:
        """The kinds of block that may be removed: some of heads, neurons, hidden, experts, in this order.

        Scores of inputs know no hidden dimensions, so that all of them remain.
        """
        kinds = tuple(kind for kind in BLOCKS if kind in split_commas(self.prune_blocks))
        return tuple(kind for kind in kinds if kind != "hidden") if self.scores_inputs else kinds

    @property
    def scores_inputs(self) -> bool:
        """Whether scores read only what layers read, of heads and neurons (`pruning/input_moments.py`)."""
        return self.score in ("flap", "wanda_sp")

    @property
    def compensates(self) -> bool:
        """Whether biases take over the mean of what a cut removes (`pruning/bias_compensation.py`)."""
        return self.prunes and self.score == "flap" and not self.repairs

    @property
    def kurtosis_factor(self) -> float:
        """The factor of the kurtosis term: `kurtosis_weight`, or the default of `kurtosis`."""
        if self.kurtosis_weight >= 0:
            return self.kurtosis_weight
        return 1.0 if self.kurtosis == "literal" else 0.1

    @property
    def cuts_wait(self) -> bool:
        """Whether gradual pruning cuts nothing before its phase ends. An unpruned teacher needs every block until then.

        It takes precedence over `defer_cuts`.
        """
        return self.defer_cuts or (self.self_distills and self.teacher == "unpruned")


@dataclass(frozen=True)
class AdapterOptions:
    """Where adapters sit, and how their ranks grow."""

    rank: int = option(8, "initial rank", COUNT)
    max_rank: int = option(64, "highest rank of an adapter", COUNT)
    rank_growth: str = choice("importance, even, none", "which adapters grow: the most important half, all, or none")
    rank_budget: float = option(4.0, "adapter parameters at the end over those at the start", COUNT)
    adapter_targets: str = option(
        AUTO,
        "projections that get an adapter; auto: q,v for instructions, and up too for all other tasks",
        SomeOf((AUTO, *PROJECTIONS)),
    )
    init_adapters: str = option(
        "", "a PEFT folder with a LoRA of the base to start from. Ranks and auto targets are those of the folder"
    )

    @property
    def grows(self) -> bool:
        """Whether adapters grow."""
        return self.rank_growth != "none"


@dataclass(frozen=True)
class OutputOptions:
    """What a run writes, when it evaluates, saves and resumes."""

    output_dir: str = option("apt_out", "a folder for the model, its checkpoints and logs")
    overwrite_output_dir: bool = option(False, "write into a folder that is not empty")
    logging_steps: int = option(1, "optimizer steps between two log lines", COUNT)
    report: bool = option(True, "compare the model before and after, with generated samples")
    report_samples: int = option(2, "prompts that the report generates from", NOT_NEGATIVE)
    eval_steps: int = option(0, "optimizer steps between two evaluations; 0 or less: only at the ends")
    reference_score: float = option(
        0.0, "score of a reference: records when 97 % of it were first reached; 0: no reference", NOT_NEGATIVE
    )
    save_steps: int = option(500, "optimizer steps between two checkpoints; 0 or less: only when stopped")
    save_total_limit: int = option(0, "checkpoints to keep; 0: all", NOT_NEGATIVE)
    resume_from_checkpoint: str = option("", "checkpoint to continue from: last, or its folder")
    profile: bool = option(False, "print at the end where the time of a step is spent")
    export_format: str = choice(
        ", ".join(EXPORT_FORMATS),
        "form of the written model. stock: a class of transformers; adaptive: sizes by layer and a modelling file; "
        "padded: a stock class, with zeros in place of removed blocks; auto: stock where a class has the sizes, else "
        "adaptive",
    )
    export_quantization: str = choice(
        ", ".join(QUANTIZATIONS),
        "also write a quantized copy of the model, such as model-fp8/, and measure its held-out loss. fp8, w4a16: "
        "compressed-tensors. nf4: as --export_bits 4, for a base of any bits",
    )
    run_report: bool = option(True, "write report.html where plotly is installed (pip install 'apt_ds[report]')")
    export_adapters: bool = option(
        False, "also write the adapters unmerged, as a PEFT folder adapters/, and the cut base that they fit as base/"
    )
    report_to: str = option("none", "experiment trackers that get metrics, sizes and options", SomeOf(TRACKERS))
    run_name: str = option("", "name of the run for the trackers; empty: the name of the output folder")
    logging_dir: str = option("", "folder of the trackers' local files; empty: runs in the output folder")
    push_to_hub: bool = option(False, "upload the written model to the Hugging Face hub at the end of the run")
    hub_model_id: str = option("", "repository to upload to, with or without the user; empty: the output folder's name")
    hub_private_repo: bool = option(False, "make the repository private where the upload makes it")
    hub_token: str = option(
        "",
        "token of the hub, which the run does not record. The deepspeed launcher prints its command line, so prefer "
        "HF_TOKEN; empty: the token of hf auth login or HF_TOKEN",
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names of the trackers, in the order of the option. () for none."""
        return tuple(name for name in split_commas(self.report_to) if name != "none")


@dataclass(frozen=True)
class DistributedOptions:
    """DeepSpeed, the watchdog, and the memory estimate of a dry run."""

    deepspeed: str = option("", "the path of a DeepSpeed JSON, such as ds_configs/zero3.json")
    timeout: int = option(
        600, "seconds without a sign of life after which a rank counts as lost; under NCCL at most 60", COUNT
    )
    dry_run: bool = option(False, "only estimate the memory that a rank needs and whether it is available")
    world_size: int = option(0, "processes of the run that --dry_run estimates; 0: as launched", NOT_NEGATIVE)
    device_memory: float = option(0.0, "GB of the GPU that --dry_run assumes; 0: this machine's device", NOT_NEGATIVE)
    host_memory: float = option(0.0, "GB of the node that --dry_run assumes; 0: this machine", NOT_NEGATIVE)
    local_rank: int = -1  # the deepspeed launcher passes it; not for users
