"""The options of pruning, of teachers and of adapters. `option_groups.py` says how an option is declared."""

from __future__ import annotations

from dataclasses import dataclass

from apt_ds.config.option_types import (
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    TEMPERATURE,
    UP_TO_ONE,
    ZERO_TO_ONE,
    OrAutomatic,
    Range,
    SomeOf,
    choice,
    option,
    split_commas,
)

BLOCKS = ("heads", "neurons", "hidden", "experts")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
AUTO = "auto"


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
        "ls: at a cut, least squares set the weights that read what is removed so that outputs change the least. "
        "--recipe default chooses ls for language models with --pruning pretuning",
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
        1.0, "with --distill logits: temperature of both probability distributions", TEMPERATURE
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
    def moves_masks(self) -> bool:
        """Whether masks move slowly between 0 and 1. Gates and repaired cuts do without."""
        return self.gradual and not self.learns_gates and not self.repairs

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
