"""What a task's metrics are taken by: predictions over all ranks, in the order of the questions.

Every exam answers `ask` with its metrics, and the one that counts as `score`; more is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from apt_ds.data import seq2seq, squad
from apt_ds.data.batching import Batch, collate
from apt_ds.data.glue import GLUE
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval import metrics
from apt_ds.eval.held_out import shares
from apt_ds.losses.task_losses import class_logits, encoder_inputs, span_logits
from apt_ds.runtime import collectives, zero


class TaskEvaluator(Protocol):
    """A set of questions about a task."""

    def evaluate(self, engine: nn.Module, per_device: int, pad_id: int) -> dict[str, float]:
        """Metrics and `score`. Collective."""
        ...


@torch.no_grad()
def over_ranks(rows: TokenizedSet, per_device: int, pad_id: int, engine: nn.Module, answer: Any) -> list[Any]:
    """What `answer(batch)`, a list with an entry for each row, gives for all rows in order. Collective."""
    training = engine.training
    engine.eval()
    own = []
    for share in shares(len(rows), per_device):
        # a rank that has run out answers one more time, as sharded weights need every rank
        batch = collate([rows[i] for i in share or [0]], pad_id).to(zero.device())
        own += list(zip(share, answer(batch), strict=False))
    engine.train(training)
    found = sorted((pair for part in collectives.gather_objects(own) for pair in part), key=lambda pair: pair[0])
    return [value for _, value in found]


@dataclass(frozen=True)
class ClassEvaluator:
    """A task of GLUE: classes, or a number."""

    task: str
    rows: TokenizedSet

    def evaluate(self, engine: nn.Module, per_device: int, pad_id: int) -> dict[str, float]:
        """The task's metrics. Collective."""
        number = GLUE[self.task].labels is None

        def answer(batch: Batch) -> list[float]:
            logits = class_logits(engine, batch)[0].float()
            return (logits[:, 0] if number else logits.argmax(-1)).tolist()

        said = over_ranks(self.rows, per_device, pad_id, engine, answer)
        found = metrics.glue_metrics(self.task, said, [row["targets"][0] for row in self.rows.rows])
        return found | {"score": found[GLUE[self.task].main]}


@dataclass(frozen=True)
class SpanEvaluator:
    """SQuAD: exact match and F1. The score is the plain F1, without a threshold tuned on the evaluation set."""

    questions: Sequence[squad.Question]
    features: squad.Features

    def evaluate(self, engine: nn.Module, per_device: int, pad_id: int) -> dict[str, float]:
        """Metrics in per cent. Collective."""

        def answer(batch: Batch) -> list[np.ndarray]:
            start, end = span_logits(engine, batch)
            return list(torch.stack([start, end], dim=1).float().cpu().numpy())

        said = over_ranks(self.features.rows, per_device, pad_id, engine, answer)
        starts, ends = ([window[side] for window in said] for side in (0, 1))
        answers = squad.answers(self.features, starts, ends, self.questions)
        texts = {name: text for name, (text, _) in answers.items()}
        nothing = {name: score for name, (_, score) in answers.items()}
        found = metrics.squad_metrics(self.questions, texts, nothing)
        return found | {"score": found["f1"]}


@dataclass(frozen=True)
class TextEvaluator:
    """Texts that are written: ROUGE of summaries, or the task's own metrics where the text is a class of GLUE."""

    task: str
    rows: TokenizedSet
    references: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int

    def evaluate(self, engine: nn.Module, per_device: int, pad_id: int) -> dict[str, float]:
        """Greedy decoding. Collective."""
        model = zero.unwrap(engine)

        def answer(batch: Batch) -> list[str]:
            written = model.generate(
                **encoder_inputs(batch),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                synced_gpus=zero.is_partitioned(model) and collectives.world_size() > 1,
            )
            return self.tokenizer.batch_decode(written, skip_special_tokens=True)

        said = over_ranks(self.rows, per_device, pad_id, engine, answer)
        if self.task not in GLUE:
            found = metrics.rouge(said, list(self.references))
            return found | {"score": found["rougeLsum"]}
        values = [seq2seq.predicted(self.task, text) for text in (*said, *self.references)]
        found = metrics.glue_metrics(self.task, values[: len(said)], values[len(said) :])
        return found | {"score": found[GLUE[self.task].main]}
