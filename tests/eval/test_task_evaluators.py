"""Metrics of each task from a model's predictions, for any batch size."""

from __future__ import annotations

import pytest
import torch

from apt_ds.data.batching import Batch
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval.task_evaluators import ClassEvaluator, TextEvaluator, predict
from tests.support import tiny

ROWS = TokenizedSet.of([{"input_ids": [5 + i] * (1 + i % 3), "targets": [i % 2]} for i in range(7)])


@pytest.mark.parametrize("per_device", [1, 3, 8])
def test_predictions_come_in_the_order_of_the_rows(per_device: int) -> None:
    model = torch.nn.Dropout()

    def first_tokens(batch: Batch) -> list[int]:
        assert not model.training
        return batch.input_ids[:, 0].tolist()

    assert predict(ROWS, per_device, 0, model, first_tokens) == [5 + i for i in range(7)]
    assert model.training


@pytest.mark.parametrize("per_device", [2, 7])
def test_a_classifier_is_scored_by_its_argmax(per_device: int) -> None:
    pytest.importorskip("sklearn")
    model = tiny.small("bert-classes").eval()
    correct = 0
    for row in ROWS.rows:
        with torch.no_grad():
            correct += model(torch.tensor([row["input_ids"]])).logits.argmax().item() == row["targets"][0]
    scores = ClassEvaluator("sst2", ROWS).evaluate(model, per_device, 0)
    assert scores == pytest.approx({"accuracy": 100 * correct / 7, "score": 100 * correct / 7})


def test_generated_texts_equal_to_their_references_score_best() -> None:
    pytest.importorskip("rouge_score")
    model, tokenizer = tiny.small("t5").eval(), tiny.tokenizer()
    rows = TokenizedSet.of([{"input_ids": [5, 6, 7], "labels": [7]}, {"input_ids": [9, 4], "labels": [8]}])
    ids = [model.generate(torch.tensor([row["input_ids"]]), max_new_tokens=4, do_sample=False)[0] for row in rows.rows]
    references = tokenizer.batch_decode(ids, skip_special_tokens=True)
    scores = TextEvaluator("text", rows, references, tokenizer, 4).evaluate(model, 1, 0)
    expected = 100.0 * sum(map(bool, map(str.split, references))) / 2
    assert scores["score"] == scores["rougeLsum"] == pytest.approx(expected) and expected > 0
