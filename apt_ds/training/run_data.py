"""The data of a run: its sets, the order of samples, the texts of the perplexity, and what they say of themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.data.length_order import Order
from apt_ds.data.rows import Rows
from apt_ds.data.sources import WeightedSource
from apt_ds.eval.mmlu import MmluEvaluator
from apt_ds.eval.task_evaluators import TaskEvaluator
from apt_ds.runtime import collectives
from apt_ds.training.checkpoint.contents import PARTS
from apt_ds.training.data_figures import DataSizes, RewrittenAnswers, SourceFigures
from apt_ds.training.sampling import Sampled
from apt_ds.training.streaming import Stream


@dataclass
class Data:
    """All data of a run, the same on all ranks.

    Attributes:
        train: the training set.
        held_out: the evaluation set.
        held_out_examples: the examples behind `held_out`.
        order: which examples each step takes.
        total_steps: optimizer steps of the run.
        texts: token blocks of each text of --perplexity_path, int64 [blocks, tokens], by short names.
        task_evaluator: measures the task's metrics. None if loss and perplexity say all.
        now: the time that chat templates write. Ranks and resumed runs share it.
        mmlu: measures MMLU. None without --mmlu_path.
        sources: what `train` was read from.
        calibration: what scores before a one-shot cut and repairs cuts. None: the training data.
        calibration_figures: its sources, for the summary. None: no data is scored at once.
        repair_figures: the sources of what repairs read. None: nothing is repaired.
        stream: the training data of --streaming. `train` is then empty.
        rewritten: what --rewrite_answers did. None without it.
    """

    train: Rows
    held_out: Rows
    held_out_examples: list[Any]
    order: Order
    total_steps: int
    texts: dict[str, torch.Tensor]
    task_evaluator: TaskEvaluator | None = None
    now: datetime | None = None
    mmlu: MmluEvaluator | None = None
    sources: tuple[WeightedSource, ...] = ()
    calibration: Sampled | None = None
    calibration_figures: list[SourceFigures] | None = None
    repair_figures: list[SourceFigures] | None = None
    stream: Stream | None = None
    rewritten: RewrittenAnswers | None = None

    def counts(self) -> dict[str, int]:
        """Numbers that a resumed run must share (see `checkpoint.contents.COUNTS`)."""
        parts = {} if self.stream is None else {PARTS: collectives.world_size()}
        return {"global_batch": self.order.global_batch, "total_steps": self.total_steps, **parts}

    def longest(self) -> int:
        """Tokens of the longest example."""
        sets = (self.train, self.held_out, *([self.calibration.rows] if self.calibration else []))
        streamed = 0 if self.stream is None else self.stream.max_length
        return max(streamed, *(int(part.lengths.max()) for part in sets if len(part)), 0)

    def fingerprints(self) -> dict[str, str]:
        """Hashes of all token ids and labels by data set, and of MMLU's questions."""
        blocks = list(self.texts.values())
        corpus = collectives.digest(blocks[0] if len(blocks) == 1 else blocks) if blocks else ""
        calibration = "" if self.calibration is None else self.calibration.rows.fingerprint
        own = {"train": self.train.fingerprint, "held_out": self.held_out.fingerprint}
        mmlu = "" if self.mmlu is None else collectives.digest(self.mmlu.questions)
        return own | {"corpus": corpus, "calibration": calibration, "mmlu": mmlu}

    def figures(self, steps: int, sampled: Sampled | None = None) -> list[SourceFigures]:
        """The sources of `sampled`, by default of the training data, with what the first steps take from each."""
        if sampled is None and self.stream is not None:
            return self.stream.figures(self.sources, steps * self.order.global_batch)
        return (sampled or Sampled(self.train, self.order, self.sources)).figures(steps)

    def describe(self) -> DataSizes:
        """Sizes, for the summary."""
        sizes: DataSizes = {
            "train": len(self.train) if self.stream is None else self.order.n,
            "held_out": len(self.held_out),
            "dropped": self.train.dropped,
            "steps": self.total_steps,
        }
        if self.sources:
            sizes["sources"] = self.figures(self.total_steps)
        if self.calibration_figures is not None:
            sizes["calibration"] = self.calibration_figures
        if self.repair_figures is not None:
            sizes["repair"] = self.repair_figures
        if self.rewritten is not None:
            sizes["rewritten"] = self.rewritten
        return sizes


def scored_sources(run: RunConfig, data: Data) -> list[SourceFigures] | None:
    """The sources of the data that scores before a one-shot cut. None where no data does."""
    if not run.pruning.one_shot or run.pruning.score == "random":
        return None
    return data.figures(run.pruning.calibration_steps, data.calibration)


def repair_sources(run: RunConfig, data: Data) -> list[SourceFigures] | None:
    """The sources of the data that repairs read at a cut. None without a repair."""
    if not run.pruning.repairs:
        return None
    return data.figures(math.ceil(run.pruning.repair_examples / data.order.global_batch), data.calibration)
