"""Metrics against values worked out by hand, and what is said where their libraries are missing."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.glue import GLUE
from apt_ds.data.squad import Question
from apt_ds.eval import metrics
from apt_ds.eval.metrics import glue_metrics, rouge, squad_metrics


def test_accuracy_and_f1_equal_those_counted_by_hand() -> None:
    # of class 1: two right, one missed, one too many
    predicted, true = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]
    assert glue_metrics("sst2", predicted, true) == pytest.approx({"accuracy": 400 / 6})
    assert glue_metrics("mrpc", predicted, true) == pytest.approx({"accuracy": 400 / 6, "f1": 200 / 3})
    assert glue_metrics("mnli", [2, 1, 0], [2, 0, 0]) == pytest.approx({"accuracy": 200 / 3})
    assert glue_metrics("qqp", [0, 0], [0, 0]) == {"accuracy": 100.0, "f1": 0.0}


def test_matthews_correlation_equals_that_counted_by_hand() -> None:
    # tp 3, fn 1, fp 1, tn 2: (3 * 2 - 1 * 1) / sqrt(4 * 4 * 3 * 3)
    predicted, true = [1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0]
    assert glue_metrics("cola", predicted, true) == pytest.approx({"matthews": 500 / 12, "accuracy": 500 / 7})
    assert glue_metrics("cola", [1, 1, 1], [1, 0, 1])["matthews"] == 0.0


def test_correlations_equal_those_counted_by_hand() -> None:
    # deviations (-1.5, -0.5, 0.5, 1.5) and (-1.5, 0.5, -0.5, 1.5): 4 / 5 for values and for ranks
    assert glue_metrics("stsb", [1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx({"pearson": 80.0, "spearman": 80.0})
    curved = glue_metrics("stsb", [0.1, 1.0, 2.0, 3.0], [0, 1, 2, 5])
    assert curved["spearman"] == pytest.approx(100.0) and curved["pearson"] < 99
    assert glue_metrics("stsb", [2.0, 2.0], [1.0, 5.0]) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize("task", GLUE)
def test_what_is_no_class_is_wrong_and_nothing_more(task: str) -> None:
    scores = glue_metrics(task, [1, -1, 0, 1], [1, 1, 0, 1])
    assert next(iter(scores)) == GLUE[task].main and all(0 < value < 100 for value in scores.values())
    if "f1" in scores:
        assert scores == pytest.approx({"accuracy": 75.0, "f1": 80.0})


@pytest.mark.parametrize(
    ("text", "true", "exact", "f1"),
    [
        ("The  Normans!", "normans", 1, 1),
        ("an a the.", "", 1, 1),
        ("in the 10th century", "10th and 11th centuries", 0, 2 / 7),
        ("red red dog", "red dog dog", 0, 2 / 3),
        ("", "dog", 0, 0),
        ("dog", "", 0, 0),
        ("theatre", "atre", 0, 0),
        ("U.S.", "us", 1, 1),
    ],
)
def test_two_answers_are_compared_as_squad_does(text: str, true: str, exact: float, f1: float) -> None:
    assert metrics.exact(text, true) == exact and metrics.overlap(text, true) == pytest.approx(f1)


def asked(id: str, *answers: str) -> Question:
    return Question(id, "", "context", "question", tuple((text, 0) for text in answers))


QUESTIONS = [asked("a", "red dog", "the big red dog"), asked("b", "cat"), asked("c"), asked("d")]
SAID = {"a": "big red dog", "b": "house", "c": "tree", "d": "tree"}


def test_squad_scores_and_their_best_thresholds() -> None:
    # kept: a is exact, b is wrong; c and d are right only where taken away
    doubts = {"a": 2.0, "b": 1.0, "c": 3.0, "d": -1.0}
    scores = squad_metrics(QUESTIONS, SAID, doubts)
    # above 0: a, b, c are taken away, of which only c is right
    assert scores["exact"] == scores["f1"] == 25.0
    assert scores["HasAns_exact"] == 0.0 and scores["NoAns_f1"] == 50.0
    # all taken away: c and d are right; above 2: a and c are; of equally good ones the lowest
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (50.0, -2.0)
    assert set(scores) == {
        *("exact", "best_exact", "best_exact_thresh", "NoAns_exact", "HasAns_exact"),
        *("f1", "best_f1", "best_f1_thresh", "NoAns_f1", "HasAns_f1"),
    }


def test_a_best_threshold_gives_the_best_score_of_all() -> None:
    draw = np.random.default_rng(0)
    words = ["red", "dog", "red dog", "big red dog", "tree", ""]
    for trial in range(40):
        questions = [asked(str(i), *([str(draw.choice(words[:5]))] if draw.random() < 0.5 else [])) for i in range(12)]
        questions[0] = asked("0")
        texts = {question.id: str(draw.choice(words)) for question in questions}
        # few values, so that many are equal
        doubt = {question.id: float(draw.integers(-3, 4)) for question in questions}
        scores = squad_metrics(questions, texts, doubt)

        def at(
            threshold: float, name: str, asked: list[Question] = questions, texts: dict = texts, doubt: dict = doubt
        ) -> float:
            shifted = {id: value - threshold for id, value in doubt.items()}
            return squad_metrics(asked, texts, shifted)[name]

        for name in ("exact", "f1"):
            best = max(at(threshold, name) for threshold in range(-5, 5))
            assert scores[f"best_{name}"] == pytest.approx(best), trial
            assert at(scores[f"best_{name}_thresh"], name) == pytest.approx(best), trial


def test_where_all_have_answers_none_is_taken_away() -> None:
    scores = squad_metrics(QUESTIONS[:2], SAID, {"a": 9.0, "b": 9.0})
    assert scores == {f"{kind}{name}": 50.0 for kind in ("", "best_", "HasAns_") for name in ("exact", "f1")}
    none = squad_metrics(QUESTIONS[2:], SAID, {"c": -1.0, "d": 1.0})
    assert none["exact"] == 50.0 and none["best_f1"] == 100.0 and "HasAns_f1" not in none
    assert math.isfinite(none["best_f1_thresh"])


def test_rouge_equals_that_counted_by_hand() -> None:
    # 3 of 4 and 3 words in common: F 6 / 7; of word pairs 1 of 3 and 2: 2 / 5; the longest row in order is 2: 4 / 7
    scores = rouge(["big red dog"], ["dog with big red"])
    assert scores == pytest.approx({"rouge1": 600 / 7, "rouge2": 200 / 5, "rougeL": 400 / 7, "rougeLsum": 400 / 7})
    assert rouge(["the cats", "tree"], ["the cat", "house"])["rouge1"] == pytest.approx(50.0)
    # sentences in another order: one row finds one sentence, by sentences both are found
    turned = rouge(["Dogs bark loudly. Cats sleep all day."], ["Cats sleep all day.\nDogs bark loudly."])
    assert turned["rougeL"] < 60 and turned["rougeLsum"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("module", "package", "task"), [("sklearn.metrics", "scikit-learn", "sst2"), ("scipy.stats", "scipy", "stsb")]
)
def test_a_missing_library_is_named(module: str, package: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"^this metric needs {package}: pip install 'apt_ds\[tasks\]'$"):
        glue_metrics(task, [0, 1], [0, 1])


def test_a_missing_rouge_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"^this metric needs rouge-score: "):
        rouge(["a"], ["a"])
