"""The part `data` of `summary.json` (`summary_schema.py`)."""

from __future__ import annotations

from typing import TypedDict


class SourceFigures(TypedDict):
    """One source of a data set.

    Attributes:
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

    Attributes:
        rewritten: training examples with an answer of the dense model.
        unfinished: those of them that were cut at a limit.
        kept: examples of conversations that stay as they were: calls of tools, no trained last answer, or no room
            for one.
        dropped: examples whose new answer is empty.
        mean_tokens: of a new answer.
        seconds: of writing them, once.
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

    Attributes:
        train, held_out: examples. With --streaming, train counts those that the steps take.
        dropped: training examples left out. With --streaming: of those that were read.
        steps: optimizer steps of the run.
        sources: of the training data, seen in all steps.
        calibration: of the data that scores before a one-shot cut, seen in --calibration_steps.
        repair: of the data that a repair reads at each cut, seen in --repair_examples.
        rewritten: with --rewrite_answers. Sizes then count the examples that the run trains, with --max_steps.
    """

    sources: list[SourceFigures]
    calibration: list[SourceFigures]
    repair: list[SourceFigures]
    rewritten: RewrittenAnswers
