"""Metrics of predictions in percent: those of GLUE, SQuAD's exact match and F1, ROUGE.

scikit-learn, scipy and rouge-score compute them (the extra [tasks]). SQuAD's scores follow its official evaluation
script.
"""

from __future__ import annotations

import importlib
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import TEXTS
from apt_ds.data.glue import GLUE
from apt_ds.data.squad import Question

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_PUNCTUATION = set(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def _library(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this metric needs {package}: pip install 'apt_ds[tasks]'") from None


def load(task: str) -> None:
    """Import the libraries of a task's metrics, which may take 100 MB of memory.

    Raises:
        UserError: A library is not installed.
    """
    if task in GLUE:
        glue_metrics(task, [0, 1], [0, 1])
    elif task in TEXTS:
        rouge(["a"], ["a"])


def accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Fraction of correct predictions."""
    return float(_library("sklearn.metrics", "scikit-learn").accuracy_score(targets, predictions))


def f1(predictions: np.ndarray, targets: np.ndarray) -> float:
    """F1 of class 1. 0 if class 1 is neither a target nor predicted."""
    score = _library("sklearn.metrics", "scikit-learn").f1_score
    return float(score(targets == 1, predictions == 1, zero_division=0.0))


def matthews(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Matthews correlation. 0 if predictions or targets are constant."""
    return float(_library("sklearn.metrics", "scikit-learn").matthews_corrcoef(targets, predictions))


def pearson(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Pearson correlation. 0 if predictions or targets are constant."""
    return _correlation("pearsonr", predictions, targets)


def spearman(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Spearman correlation. 0 if predictions or targets are constant."""
    return _correlation("spearmanr", predictions, targets)


def _correlation(name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
    if np.ptp(predictions) == 0 or np.ptp(targets) == 0:
        return 0.0
    return float(getattr(_library("scipy.stats", "scipy"), name)(predictions, targets).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def glue_metrics(task: str, predictions: Sequence[float], targets: Sequence[float]) -> dict[str, float]:
    """The metrics of a GLUE task in percent, the main one first.

    Args:
        task: A key of `GLUE`.
        predictions: Classes or scores. A class that does not exist counts as wrong.
        targets: As many classes or scores.
    """
    assert len(predictions) == len(targets) > 0
    predicted, true = np.asarray(predictions), np.asarray(targets)
    return {name: 100 * METRICS[name](predicted, true) for name in GLUE[task].metrics}


def normalized(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, articles and extra blanks."""
    words = "".join(char for char in text.lower() if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", words).split())


def exact(predicted: str, true: str) -> float:
    """1 if two answers are the same, else 0."""
    return float(normalized(predicted) == normalized(true))


def overlap(predicted: str, true: str) -> float:
    """F1 of the words of two answers, 0 to 1. If one answer is empty: 1 if both are empty, else 0."""
    words, expected = normalized(predicted).split(), normalized(true).split()
    if not words or not expected:
        return float(words == expected)
    common = sum((Counter(words) & Counter(expected)).values())
    return 2 * common / (len(words) + len(expected))


def squad_metrics(
    questions: Sequence[Question], predictions: Mapping[str, str], no_answer_scores: Mapping[str, float]
) -> dict[str, float]:
    """SQuAD's scores in percent, with the names of the official evaluation script (version 2).

    `exact` and `f1` are the plain scores: a question has no answer if its no-answer score is above 0. `best_exact`
    and `best_f1` use the thresholds that score best on these same questions, `best_exact_thresh` and `best_f1_thresh`.
    `HasAns_exact`, `NoAns_f1` and so on are plain scores over the questions with and without an answer. If all
    questions have an answer (version 1), no threshold applies.

    Args:
        questions: All questions.
        predictions: The most probable answer to each question, by id.
        no_answer_scores: Logit of "no answer" minus the logit of that answer, by id.
    """
    gold = [[text for text, _ in question.answers if normalized(text)] or [""] for question in questions]
    answered = np.array([bool(question.answers) for question in questions])
    texts = [predictions[question.id] for question in questions]
    no_answer = np.array([no_answer_scores[question.id] for question in questions], np.float64)
    scores: dict[str, float] = {}
    for name, score in (("exact", exact), ("f1", overlap)):
        answer = np.array([max(score(text, one) for one in golds) for text, golds in zip(texts, gold, strict=True)])
        blank = (~answered).astype(np.float64)
        threshold, best = (math.inf, answer.mean()) if answered.all() else _best_threshold(answer, blank, no_answer)
        each = answer if answered.all() else np.where(no_answer > 0, blank, answer)
        scores |= {name: 100 * float(each.mean()), f"best_{name}": 100 * float(best)}
        if not answered.all():
            scores |= {f"best_{name}_thresh": threshold, f"NoAns_{name}": 100 * float(each[~answered].mean())}
        if answered.any():
            scores[f"HasAns_{name}"] = 100 * float(each[answered].mean())
    return scores


def _best_threshold(answer: np.ndarray, blank: np.ndarray, no_answer: np.ndarray) -> tuple[float, float]:
    """The best threshold, and the mean score with it. Questions above the threshold get no answer.

    Args:
        answer: The score of each question with its answer.
        blank: The score of each question without an answer.
        no_answer: The no-answer score of each question.

    Returns:
        Threshold and mean score. The lowest of equally good thresholds.
    """
    order = np.argsort(no_answer, kind="stable")
    gains = np.concatenate([[0.0], np.cumsum((answer - blank)[order])])
    thresholds = np.concatenate([[no_answer.min() - 1], no_answer[order]])
    # questions with equal no-answer scores change together
    last = np.append(thresholds[1:] != thresholds[:-1], True)
    place = int(np.argmax(np.where(last, gains, -np.inf)))
    return float(thresholds[place]), float((blank.sum() + gains[place]) / len(answer))


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L in percent, words stemmed.

    `rougeLsum` is the ROUGE-L that papers report for summaries, by sentences. A sentence is a line. In a text of one
    line it ends at a full stop, question mark or exclamation mark.
    """
    assert len(predictions) == len(references) > 0
    scorer = _library("rouge_score.rouge_scorer", "rouge-score").RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(_lines(true), _lines(text)) for text, true in zip(predictions, references, strict=True)]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in ROUGE}


def _lines(text: str) -> str:
    return text if "\n" in text.strip() else _SENTENCE_END.sub("\n", text.strip())
