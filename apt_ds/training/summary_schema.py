"""The product's API: the content of `summary.json` and of each line of `metrics.jsonl`.

`VERSION` goes up when a key changes its meaning or disappears. New keys may come without a new version.
README.md of this folder has a table of all keys. Seconds are wall-clock seconds, bytes are bytes, both on rank 0.
"""

from __future__ import annotations

from typing import TypedDict

from apt_ds.training.pruning_figures import LayerSizes, PruningFigures
from apt_ds.training.training_figures import TrainingFigures

VERSION = 1


class Metrics(TypedDict, total=False):
    """A task's metrics, in percent. Each task has some of them.

    score: the one number that counts, more is better. For language models and without a task: absent.
    accuracy, f1, matthews, pearson, spearman: GLUE.
    exact, f1 and the others with their prefixes: SQuAD, by the names of the official script.
    rouge1, rouge2, rougeL, rougeLsum: summaries.
    """

    score: float
    accuracy: float
    f1: float
    matthews: float
    pearson: float
    spearman: float
    exact: float
    best_exact: float
    best_f1: float
    best_exact_thresh: float
    best_f1_thresh: float
    HasAns_exact: float
    HasAns_f1: float
    NoAns_exact: float
    NoAns_f1: float
    rouge1: float
    rouge2: float
    rougeL: float
    rougeLsum: float


class ModelFigures(Metrics, total=False):
    """One evaluation of the model, with what training it at this size costs.

    held_out_loss: mean loss on the evaluation set, in nats.
    held_out_perplexity: its exponential, for language models.
    corpus_perplexity: perplexity of --perplexity_path, of the first text where it names several.
    corpus_perplexities: perplexity of each text of --perplexity_path, by file name and slice. Only with several texts.
    mmlu: accuracy on --mmlu_path, in percent.
    parameters, parameters_without_embeddings: adapters merged.
    checkpoint_bytes: size of the weights as they are written.
    generated_tokens_per_second: of the plain model, greedy at batch 1, the prompt's time included. Only with --report.
    decode_tokens_per_second, prefill_tokens_per_second: the two parts of it. Only with --report.
    step_seconds: median time of a training step at this size. None without a step.
    peak_memory_bytes: peak memory of training at this size. None without a step.
    peak_added_bytes: the same without `base_memory_bytes`. None without a step.
    peak_reserved_bytes: peak that the GPU's allocator reserved. None without a step, and on the CPU.
    """

    held_out_loss: float
    held_out_perplexity: float
    corpus_perplexity: float
    corpus_perplexities: dict[str, float]
    mmlu: float
    parameters: int
    parameters_without_embeddings: int
    checkpoint_bytes: int
    generated_tokens_per_second: float
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    step_seconds: float | None
    peak_memory_bytes: int | None
    peak_added_bytes: int | None
    peak_reserved_bytes: int | None


class SourceFigures(TypedDict):
    """One source of a data set.

    name: as the option has it.
    weight: fraction of the examples that a mixture takes from it.
    rows: examples of the source, without those held out. 0 with --streaming, where their number is unknown.
    seen: examples that the steps take from it. A row counts each time.
    """

    name: str
    weight: float
    rows: int
    seen: int


class RewrittenAnswers(TypedDict):
    """What --rewrite_answers did.

    rewritten: training examples with an answer of the dense model. unfinished: those of them that were cut at a limit.
    kept: examples of conversations that stay as they were: calls of tools, no trained last answer, or no room for one.
    dropped: examples whose new answer is empty. mean_tokens: of a new answer. seconds: of writing them, once.
    """

    rewritten: int
    unfinished: int
    kept: int
    dropped: int
    mean_tokens: float
    seconds: float


class _DataSizes(TypedDict):
    train: int
    held_out: int
    dropped: int
    steps: int


class DataSizes(_DataSizes, total=False):
    """What the run reads.

    train, held_out: examples. With --streaming, train counts those that the steps take.
    dropped: training examples left out. With --streaming: of those that were read.
    steps: optimizer steps of the run.
    sources: of the training data, seen in all steps.
    calibration: of the data that scores before a one-shot cut, seen in --calibration_steps.
    rewritten: with --rewrite_answers. Sizes then count the examples that the run trains, with --max_steps.
    """

    sources: list[SourceFigures]
    calibration: list[SourceFigures]
    rewritten: RewrittenAnswers


class ProfileFigures(TypedDict):
    """seconds: median by phase of a step. share: fraction of the step. steps: how many were counted."""

    seconds: dict[str, float]
    share: dict[str, float]
    steps: dict[str, int]


class Sample(TypedDict):
    """A question of the evaluation set, and the greedy answers of the base model and of the written model."""

    question: str
    before: str
    after: str


class Environment(TypedDict):
    """Where a run came from.

    command: the words of the process, as a shell reads them.
    world_size: processes.
    device: name of the first rank's device.
    versions: of Python and of the packages that compute.
    """

    command: str
    world_size: int
    device: str
    versions: dict[str, str]


class QuantizedFigures(TypedDict):
    """The quantized copy of the written model, with --export_quantization.

    format: fp8, w4a16 or nf4. folder: its name in the output folder.
    held_out_loss_before, held_out_loss: of the written model and of the copy, both loaded from their folders.
    checkpoint_bytes: size of the copy's weights.
    mean_weight_error, largest_weight_error: relative error of a matrix.
    """

    format: str
    folder: str
    held_out_loss_before: float
    held_out_loss: float
    checkpoint_bytes: int
    mean_weight_error: float
    largest_weight_error: float


class WrittenModel(TypedDict):
    """The folder of the written model.

    format: stock, adaptive or padded. bytes: of its weights. padding_bytes: those of them that are padding.
    """

    format: str
    bytes: int
    padding_bytes: int


class Figures(TypedDict, total=False):
    """Evaluations that a run has taken so far, in a checkpoint."""

    before: ModelFigures
    data: DataSizes
    after_cut: ModelFigures
    after: ModelFigures


class _Summary(TypedDict):
    version: int
    before: ModelFigures
    data: DataSizes
    pruning: PruningFigures
    training: TrainingFigures
    environment: Environment
    warnings: list[str]


class Summary(_Summary, total=False):
    """The content of `summary.json`.

    before, after_cut, after: evaluations of the base model, after a cut at once, and after the last step.
    written: the folder of the written model.
    profile: with --profile, by "dense" and "cut".
    warnings: lines that the first rank printed as warnings since the run's last start.
    samples, note: with --report. The note says why generation was not measured.
    quantized: with --export_quantization.
    """

    after_cut: ModelFigures
    after: ModelFigures
    written: WrittenModel
    profile: dict[str, ProfileFigures]
    samples: list[Sample]
    note: str
    quantized: QuantizedFigures


class Ranks(TypedDict):
    """Ranks of the adapters. 0 without adapters."""

    min: int
    mean: float
    max: int


class StepSeconds(TypedDict):
    """Seconds of one step, and of the rebuild, scoring and search since the line before.

    salience, search: time at step boundaries.
    """

    step: float
    rebuild: float
    salience: float
    search: float


class _MetricsLine(TypedDict):
    step: int
    loss: float | None
    learning_rate: float
    kept: float
    kept_parameters: int
    target: float
    ranks: Ranks
    tokens_per_second: float
    non_padding: float
    peak_memory_bytes: int
    seconds: StepSeconds


class MetricsLine(_MetricsLine, total=False):
    """One line of `metrics.jsonl`.

    step: number of updates so far.
    loss: mean over the global batch. None if it is not finite.
    kept, target: fractions of the prunable parameters, actual and scheduled.
    tokens_per_second: over all ranks, of this step.
    non_padding: fraction of the global batch's tokens that is not padding.
    peak_memory_bytes: since the last step or rebuild.
    sizes_before: sizes of the base model. On the first line.
    sizes: sizes of every layer. On the first line, and on the first line after a rebuild.
    warnings: printed during training since the line before. Absent without one.
    teacher_distance: with --distill logits: KL(dense || student), mean over the trained tokens of the last step with a
        finite loss, in nats.
    """

    sizes_before: LayerSizes
    sizes: LayerSizes
    warnings: list[str]
    teacher_distance: float
