"""The part `training` of `summary.json` (`summary_schema.py`)."""

from __future__ import annotations

from typing import TypedDict


class Evaluated(TypedDict):
    """One score of the run: after `step` updates and `seconds` of training, and whether the target size was reached."""

    step: int
    score: float
    seconds: float
    pruned: bool


class PhaseMemory(TypedDict, total=False):
    """Peak bytes of each phase without `base_memory_bytes`. A phase that the run did not have is absent.

    loading: base model, adapters and the first engine.
    evaluation: evaluations of the model in training.
    dense_steps, final_steps: steps before the first cut, and steps at the final size.
    scoring: what scores blocks for a cut at once.
    rebuilds: the largest rebuild.
    writing: the export.
    """

    loading: int
    evaluation: int
    dense_steps: int
    scoring: int
    rebuilds: int
    final_steps: int
    writing: int


class _DistillFigures(TypedDict):
    source: str
    distance: float | None


class DistillFigures(_DistillFigures, total=False):
    """What --distill logits did.

    source: cache or live.
    distance: KL(dense || student) of the last step with a finite loss, mean over its tokens in nats. None without one.
    tokens: trained tokens that the cache has. bytes: of the cache on the disk. seconds: time that it took when it was
        made. All three are absent with --teacher_source live.
    """

    tokens: int
    bytes: int
    seconds: float


class _TrainingFigures(TypedDict):
    seconds: float
    steps_seconds: float
    scoring_seconds: float
    rebuilds_seconds: float
    evaluation_seconds: float
    peak_memory_bytes: int | None
    peak_reserved_bytes: int | None
    evaluation_peak_bytes: int | None
    base_memory_bytes: int
    memory_by_phase: PhaseMemory
    non_padding: float | None
    history: list[Evaluated]


class TrainingFigures(_TrainingFigures, total=False):
    """Cost of the whole run, and its scores.

    seconds: steps, scoring and rebuilds together. Evaluation is not in it.
    peak_memory_bytes, peak_reserved_bytes: bytes in use, and bytes that the GPU's allocator reserved (None on the CPU).
    base_memory_bytes: what the process that ended the run used before it loaded the model. 0 on a GPU.
    non_padding: fraction of the training batches' tokens that is not padding. None without a step.
    history: scores at --eval_steps and at adjustments with a teacher.
    reference_score, reached_97_percent, reached_97_percent_pruned: with --reference_score.
    distill: what --distill logits did. Absent without it.
    """

    reference_score: float
    reached_97_percent: Evaluated | None
    reached_97_percent_pruned: Evaluated | None
    distill: DistillFigures
