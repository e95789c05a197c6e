"""What a model under training is worth: loss and score on the evaluation set, perplexity of a corpus."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval.held_out import held_out_loss, perplexity
from apt_ds.eval.task_evaluators import TaskEvaluator
from apt_ds.models import loading
from apt_ds.runtime import zero


class Evaluator:
    """task_evaluator: what the task's metrics are taken by, None where loss and perplexity say all; corpus: token
    blocks.

    written: the dtype that the model will be written in.
    """

    def __init__(
        self,
        run: RunConfig,
        kind: str,
        held_out: TokenizedSet,
        task_evaluator: TaskEvaluator | None,
        corpus: torch.Tensor | None,
        pad_id: int,
        written: torch.dtype | None = None,
    ) -> None:
        self.kind, self.held_out, self.task_evaluator, self.corpus, self.pad_id = (
            kind,
            held_out,
            task_evaluator,
            corpus,
            pad_id,
        )
        self.export_bits, self.written = run.model.export_bits, written
        self.batch, self.device = run.optim.per_device_eval_batch_size, zero.device()

    def loss(self, engine: nn.Module) -> float:
        """Mean loss on the evaluation set. Collective."""
        return held_out_loss(engine, self.held_out, self.kind, self.batch, self.pad_id, self.device)

    def score(self, engine: nn.Module) -> float:
        """One number, more is better: the task's main metric, or the loss with its sign turned. Collective."""
        return (
            -self.loss(engine)
            if self.task_evaluator is None
            else self.task_evaluator.evaluate(engine, self.batch, self.pad_id)["score"]
        )

    def everything(self, engine: nn.Module) -> dict[str, Any]:
        """Loss, metrics and `score`, perplexities, sizes. Collective."""
        loss = self.loss(engine)
        found: dict[str, Any] = {"held_out_loss": loss}
        if self.task_evaluator is None:
            found["held_out_perplexity"] = math.exp(min(loss, 80.0))
        else:
            found |= self.task_evaluator.evaluate(engine, self.batch, self.pad_id)
        found |= self.sizes(engine)
        if self.corpus is not None:
            found["corpus_perplexity"] = perplexity(engine, self.corpus, max(1, self.batch // 4), self.device)
        return found

    def sizes(self, engine: nn.Module) -> dict[str, int]:
        """Parameters and bytes of the model as it will be written."""
        return loading.count_parameters(zero.unwrap(engine), self.export_bits, self.written)
