"""The metrics of each task, from predictions over all ranks in the order of the examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION
from apt_ds.data import seq2seq, squad
from apt_ds.data.batching import Batch, collate
from apt_ds.data.glue import GLUE
from apt_ds.data.squad_answers import WindowAnswer, best_answers, window_answer
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval import metrics
from apt_ds.eval.held_out import evaluation_mode, rank_batches
from apt_ds.losses.task_loss import encoder_inputs
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.models.unwrap import pretrained_model
from apt_ds.runtime import collectives, zero

Prediction = TypeVar("Prediction")
Condensed = TypeVar("Condensed")


class TaskEvaluator(Protocol):
    """An evaluation set with the metrics of its task."""

    def evaluate(self, engine: nn.Module, per_device: int, pad_id: int) -> dict[str, float]:
        """Metrics of the task, and its main metric again as `score`. Higher is better. Collective."""
        ...


@torch.no_grad()
def own_predictions(
    rows: TokenizedSet,
    per_device: int,
    pad_id: int,
    engine: nn.Module,
    predict_batch: Callable[[Batch], Sequence[Prediction]],
    condense: Callable[[int, Prediction], Condensed],
) -> list[tuple[int, Condensed]]:
    """This rank's predictions, each with the number of its row. Collective.

    Args:
        rows: The evaluation set.
        per_device: Examples of a rank's batch.
        pad_id: The token id of padding.
        engine: A model or an engine. It is in eval mode meanwhile.
        predict_batch: A batch to one prediction for each row.
        condense: A row's number and its prediction to what is kept of it.
    """
    own: list[tuple[int, Condensed]] = []
    with evaluation_mode(engine):
        for indices in rank_batches(len(rows), per_device):
            # a rank without rows left predicts once more, because sharded weights need every rank
            batch = collate([rows[i] for i in indices or [0]], pad_id).to(zero.device())
            own += [(i, condense(i, each)) for i, each in zip(indices, predict_batch(batch), strict=False)]
    return own


def in_order(own: list[tuple[int, Prediction]]) -> list[Prediction]:
    """The small predictions of all ranks, in the order of the rows, on every rank. Collective.

    Args:
        own: This rank's predictions, each with the number of its row.
    """
    pairs = [pair for part in collectives.gather_objects(own) for pair in part]
    return [prediction for _, prediction in sorted(pairs, key=lambda pair: pair[0])]


def predict(
    rows: TokenizedSet,
    per_device: int,
    pad_id: int,
    engine: nn.Module,
    predict_batch: Callable[[Batch], Sequence[Prediction]],
) -> list[Prediction]:
    """Small predictions for all rows, in their order, on every rank: `own_predictions`, `in_order`. Collective."""
    return in_order(own_predictions(rows, per_device, pad_id, engine, predict_batch, lambda _, each: each))


@dataclass(frozen=True)
class ClassEvaluator:
    """A task of GLUE on an encoder: classes, or scores (STS-B)."""

    task: str
    rows: TokenizedSet

    def evaluate(self, engine: nn.Module, per_device: int, pad_id: int) -> dict[str, float]:
        """The metrics of the GLUE task in percent. Collective."""
        is_regression = GLUE[self.task].labels is None

        def predict_batch(batch: Batch) -> list[float]:
            logits = TASK_LOSSES[CLASSIFICATION].logits(engine, batch)[0].float()
            return (logits[:, 0] if is_regression else logits.argmax(-1)).tolist()

        predictions = predict(self.rows, per_device, pad_id, engine, predict_batch)
        scores = metrics.glue_metrics(self.task, predictions, [row["targets"][0] for row in self.rows])
        return scores | {"score": scores[GLUE[self.task].main]}


@dataclass(frozen=True)
class SpanEvaluator:
    """SQuAD: exact match and F1. The score is the plain F1, without a threshold tuned on the evaluation set."""

    questions: Sequence[squad.Question]
    features: squad.Features

    def evaluate(self, engine: nn.Module, per_device: int, pad_id: int) -> dict[str, float]:
        """The metrics of `metrics.squad_metrics` in percent. Collective."""

        def predict_batch(batch: Batch) -> list[np.ndarray]:
            start, end = TASK_LOSSES[ANSWERS].logits(engine, batch)
            return list(torch.stack([start, end], dim=1).float().cpu().numpy())

        def condense(window: int, logits: np.ndarray) -> WindowAnswer:
            return window_answer(self.features, window, *logits)

        # a window's logits are a thousand times larger than its answer, and the device would hold those of all ranks
        own = own_predictions(self.features.rows, per_device, pad_id, engine, predict_batch, condense)
        answers = best_answers(self.features, in_order(own), self.questions)
        texts = {name: text for name, (text, _) in answers.items()}
        no_answer_scores = {name: score for name, (_, score) in answers.items()}
        scores = metrics.squad_metrics(self.questions, texts, no_answer_scores)
        return scores | {"score": scores["f1"]}


@dataclass(frozen=True)
class TextEvaluator:
    """Generated texts: ROUGE of summaries, or the metrics of GLUE where the text names a class."""

    task: str
    rows: TokenizedSet
    references: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int

    def evaluate(self, engine: nn.Module, per_device: int, pad_id: int) -> dict[str, float]:
        """Metrics of greedily decoded texts in percent. Collective."""
        model: Any = pretrained_model(engine)

        def predict_batch(batch: Batch) -> list[str]:
            ids = model.generate(
                **encoder_inputs(batch),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                synced_gpus=zero.is_partitioned(model) and collectives.world_size() > 1,
            )
            return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

        texts = predict(self.rows, per_device, pad_id, engine, predict_batch)
        if self.task not in GLUE:
            scores = metrics.rouge(texts, list(self.references))
            return scores | {"score": scores["rougeLsum"]}
        labels = [seq2seq.predicted(self.task, text) for text in (*texts, *self.references)]
        scores = metrics.glue_metrics(self.task, labels[: len(texts)], labels[len(texts) :])
        return scores | {"score": scores[GLUE[self.task].main]}
