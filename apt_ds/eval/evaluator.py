"""Evaluates a model during training: loss and score on the evaluation set, perplexity of texts, sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.data.rows import Rows
from apt_ds.eval.held_out import held_out_loss, perplexity
from apt_ds.eval.mmlu import MmluEvaluator
from apt_ds.eval.task_evaluators import TaskEvaluator
from apt_ds.models import loading
from apt_ds.models.unwrap import pretrained_model
from apt_ds.runtime import zero


class Evaluator:
    """Evaluates the model of a run.

    Attributes:
        task_type: A key of `TASK_LOSSES`.
        held_out: The evaluation set.
        task_evaluator: The metrics of the task. None where a task has loss and perplexity only.
        texts: Token blocks of each text of `--perplexity_path`, int64 [n, length], by short names.
        export_dtype: The dtype of the exported model. None means the parameters' own.
        mmlu: Measures MMLU. None without `--mmlu_path`.
    """

    def __init__(
        self,
        run: RunConfig,
        task_type: str,
        held_out: Rows,
        task_evaluator: TaskEvaluator | None,
        texts: Mapping[str, torch.Tensor],
        pad_id: int,
        export_dtype: torch.dtype | None = None,
        mmlu: MmluEvaluator | None = None,
    ) -> None:
        self.task_type, self.held_out, self.task_evaluator = task_type, held_out, task_evaluator
        self.texts, self.pad_id, self.mmlu = texts, pad_id, mmlu
        self.export_bits, self.export_dtype = run.model.export_bits, export_dtype
        self.per_device, self.device = run.optim.per_device_eval_batch_size, zero.device()

    def loss(self, engine: nn.Module) -> float:
        """Mean loss on the evaluation set. Collective."""
        return held_out_loss(engine, self.held_out, self.task_type, self.per_device, self.pad_id, self.device)

    def score(self, engine: nn.Module) -> float:
        """The main metric of the task, or the negative loss. Higher is better. Collective."""
        if self.task_evaluator is None:
            return -self.loss(engine)
        return self.task_evaluator.evaluate(engine, self.per_device, self.pad_id)["score"]

    def evaluate(self, engine: nn.Module) -> dict[str, Any]:
        """Loss, metrics of the task with `score`, perplexities and sizes. Collective."""
        loss = self.loss(engine)
        metrics: dict[str, Any] = {"held_out_loss": loss}
        if self.task_evaluator is None:
            metrics["held_out_perplexity"] = math.exp(min(loss, 80.0))
        else:
            metrics |= self.task_evaluator.evaluate(engine, self.per_device, self.pad_id)
        metrics |= self.sizes(engine)
        metrics |= self.perplexities(engine)
        if self.mmlu is not None:
            metrics["mmlu"] = self.mmlu.accuracy(engine)
        return metrics

    def perplexities(self, engine: nn.Module) -> dict[str, Any]:
        """`corpus_perplexity` of the first text, and with several texts `corpus_perplexities` by name. Collective."""
        size = max(1, self.per_device // 4)
        values = {name: perplexity(engine, blocks, size, self.device) for name, blocks in self.texts.items()}
        if not values:
            return {}
        first = {"corpus_perplexity": next(iter(values.values()))}
        return first if len(values) == 1 else first | {"corpus_perplexities": values}

    def sizes(self, engine: nn.Module) -> dict[str, int]:
        """Parameters and bytes of the model with its adapters merged, in the dtype of the export."""
        return loading.count_parameters(pretrained_model(engine), self.export_bits, self.export_dtype)
