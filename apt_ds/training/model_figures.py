"""The parts `before`, `after_cut` and `after` of `summary.json` (`summary_schema.py`)."""

from __future__ import annotations

from typing import TypedDict


class Metrics(TypedDict, total=False):
    """A task's metrics, in percent. Each task has some of them.

    Attributes:
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

    Attributes:
        held_out_loss: mean loss on the evaluation set, in nats.
        held_out_perplexity: its exponential, for language models.
        corpus_perplexity: perplexity of --perplexity_path, of the first text where it names several.
        corpus_perplexities: perplexity of each text of --perplexity_path, by file name and slice. Only with several
            texts.
        mmlu: accuracy on --mmlu_path, in percent.
        parameters, parameters_without_embeddings: adapters merged.
        checkpoint_bytes: size of the weights as they are written.
        generated_tokens_per_second: of the plain model, greedy at batch 1, the prompt's time included. Only with
            --report.
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
