"""The part `training` of `summary.json` (`summary_schema.py`)."""

from __future__ import annotations

from typing import TypedDict

from apt_ds.training.meter_figures import WholeFigures


class Evaluated(TypedDict):
    """One score of the run: after `step` updates and `seconds` of training, and whether the target size was reached."""

    step: int
    score: float
    seconds: float
    pruned: bool


class _DistillFigures(TypedDict):
    source: str
    distance: float | None


class DistillFigures(_DistillFigures, total=False):
    """What --distill logits did.

    Attributes:
        source: cache or live.
        distance: KL(dense || student) of the last step with a finite loss, mean over its tokens in nats. None
            without one.
        tokens: trained tokens that the cache has. Absent with --teacher_source live.
        bytes: of the cache on the disk. Absent with --teacher_source live.
        seconds: time that the cache took when it was made. Absent with --teacher_source live.
    """

    tokens: int
    bytes: int
    seconds: float


class _TrainingFigures(WholeFigures):
    history: list[Evaluated]


class TrainingFigures(_TrainingFigures, total=False):
    """Cost of the whole run, and its scores.

    Attributes:
        history: scores at --eval_steps and at adjustments with a teacher.
        reference_score, reached_97_percent, reached_97_percent_pruned: with --reference_score.
        distill: what --distill logits did. Absent without it.
    """

    reference_score: float
    reached_97_percent: Evaluated | None
    reached_97_percent_pruned: Evaluated | None
    distill: DistillFigures
