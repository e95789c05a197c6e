"""The evaluator of a run: which figures it gives, and which one is the score."""

from __future__ import annotations

import math

import pytest
import torch

from apt_ds.config.resolve import resolve
from apt_ds.config.tasks import CLASSIFICATION, LANGUAGE_MODEL
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval.evaluator import Evaluator
from apt_ds.eval.held_out import held_out_loss, perplexity
from apt_ds.eval.task_evaluators import ClassEvaluator
from tests.support import tiny
from tests.support.paths import ROOT

ROWS = TokenizedSet.of([{"input_ids": [5, 6, 7 + i], "labels": [5, 6, 7 + i]} for i in range(5)])
RUN = resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--per_device_eval_batch_size", "4"])
CPU = torch.device("cpu")


def test_without_metrics_of_a_task_the_score_is_the_negative_loss() -> None:
    model, blocks = tiny.model().eval(), torch.arange(5, 29).view(3, 8)
    evaluator = Evaluator(RUN, LANGUAGE_MODEL, ROWS, None, {"a": blocks}, 0)
    loss = held_out_loss(model, ROWS, LANGUAGE_MODEL, 4, 0, CPU)
    figures = evaluator.evaluate(model)
    assert evaluator.score(model) == -loss and figures["held_out_loss"] == loss
    assert figures["held_out_perplexity"] == pytest.approx(math.exp(loss))
    assert figures["corpus_perplexity"] == pytest.approx(perplexity(model, blocks, 1, CPU))
    assert figures["parameters"] == sum(p.numel() for p in model.parameters()) and "score" not in figures
    assert "corpus_perplexities" not in figures


def test_several_texts_have_a_perplexity_each() -> None:
    model, blocks = tiny.model().eval(), torch.arange(5, 29).view(3, 8)
    both = Evaluator(RUN, LANGUAGE_MODEL, ROWS, None, {"a": blocks, "b[:50%]": blocks + 7}, 0).evaluate(model)
    values = [perplexity(model, tokens, 1, CPU) for tokens in (blocks, blocks + 7)]
    assert both["corpus_perplexity"] == pytest.approx(values[0]) and values[0] != values[1]
    assert both["corpus_perplexities"] == pytest.approx({"a": values[0], "b[:50%]": values[1]})


def test_a_task_has_its_own_score() -> None:
    pytest.importorskip("sklearn")
    rows = TokenizedSet.of([{"input_ids": [5 + i, 6], "targets": [i % 2]} for i in range(5)])
    model, task_evaluator = tiny.small("bert-classes").eval(), ClassEvaluator("mrpc", rows)
    evaluator = Evaluator(RUN, CLASSIFICATION, rows, task_evaluator, {}, 0)
    metrics, figures = task_evaluator.evaluate(model, 4, 0), evaluator.evaluate(model)
    assert evaluator.score(model) == figures["score"] == metrics["score"]
    assert {"accuracy", "f1", "score"} == metrics.keys() and metrics.items() <= figures.items()
    assert "held_out_perplexity" not in figures and "corpus_perplexity" not in figures


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 2), (None, 4)])
def test_sizes_are_those_of_the_export(dtype: torch.dtype | None, size: int) -> None:
    sizes = Evaluator(RUN, LANGUAGE_MODEL, ROWS, None, {}, 0, dtype).sizes(tiny.model())
    assert sizes["checkpoint_bytes"] == size * sizes["parameters"]
