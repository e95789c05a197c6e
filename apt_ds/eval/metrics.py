"""How good predictions are: GLUE's metrics, SQuAD's exact match and F1, ROUGE. All in percent, as papers print them.

scikit-learn, scipy and rouge-score do the counting (the extra [tasks]); SQuAD's scores follow the definition of its
official evaluation script.
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
    """Have in memory what a task's metrics are made with, which may be 100 MB. Raises UserError where it is absent."""
    if task in GLUE:
        glue_metrics(task, [0, 1], [0, 1])
    elif task in TEXTS:
        rouge(["a"], ["a"])


def accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Share of equal ones."""
    return float(_library("sklearn.metrics", "scikit-learn").accuracy_score(targets, predictions))


def f1(predictions: np.ndarray, targets: np.ndarray) -> float:
    """F1 of class 1; 0 where it is neither there nor predicted."""
    score = _library("sklearn.metrics", "scikit-learn").f1_score
    return float(score(targets == 1, predictions == 1, zero_division=0.0))


def matthews(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Matthews' correlation; 0 where one side is constant."""
    return float(_library("sklearn.metrics", "scikit-learn").matthews_corrcoef(targets, predictions))


def pearson(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Linear correlation; 0 where one side is constant."""
    return _correlation("pearsonr", predictions, targets)


def spearman(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Correlation of ranks; 0 where one side is constant."""
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
    """The metrics of a task of GLUE, in percent, the one that counts first.

    predictions, targets: as many classes (or scores) each; a prediction that is no class is simply wrong.
    """
    assert len(predictions) == len(targets) > 0
    said, true = np.asarray(predictions), np.asarray(targets)
    return {name: 100 * METRICS[name](said, true) for name in GLUE[task].metrics}


def normalized(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, articles and surplus blanks."""
    bare = "".join(char for char in text.lower() if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact(said: str, true: str) -> float:
    """1 where two answers are the same, else 0."""
    return float(normalized(said) == normalized(true))


def overlap(said: str, true: str) -> float:
    """F1 of the words of two answers, 0 to 1; where one has none, whether both have none."""
    words, expected = normalized(said).split(), normalized(true).split()
    if not words or not expected:
        return float(words == expected)
    common = sum((Counter(words) & Counter(expected)).values())
    return 2 * common / (len(words) + len(expected))


def squad_metrics(
    questions: Sequence[Question], predictions: Mapping[str, str], no_answer_scores: Mapping[str, float]
) -> dict[str, float]:
    """SQuAD's scores in percent, with the names of the official evaluation script (version 2).

    `exact` and `f1` are the plain scores: a question has no answer where its no-answer score is above 0. `best_exact`
    and `best_f1` use the thresholds that score best on these same questions, `best_exact_thresh` and `best_f1_thresh`.
    `HasAns_exact`, `NoAns_f1` and so on are plain scores over the questions with and without an answer. Where all
    questions have an answer (version 1), every prediction counts as it is.

    Args:
        questions: all that were asked.
        predictions: the likeliest answer to each question, by id.
        no_answer_scores: logit of "no answer" minus the logit of that answer, by id.
    """
    gold = [[text for text, _ in question.answers if normalized(text)] or [""] for question in questions]
    answered = np.array([bool(question.answers) for question in questions])
    said = [predictions[question.id] for question in questions]
    doubt = np.array([no_answer_scores[question.id] for question in questions], np.float64)
    found: dict[str, float] = {}
    for name, score in (("exact", exact), ("f1", overlap)):
        kept = np.array([max(score(text, one) for one in texts) for text, texts in zip(said, gold, strict=True)])
        blank = (~answered).astype(np.float64)
        threshold, best = (math.inf, kept.mean()) if answered.all() else _best_threshold(kept, blank, doubt)
        scores = kept if answered.all() else np.where(doubt > 0, blank, kept)
        found |= {name: 100 * float(scores.mean()), f"best_{name}": 100 * float(best)}
        if not answered.all():
            found |= {f"best_{name}_thresh": threshold, f"NoAns_{name}": 100 * float(scores[~answered].mean())}
        if answered.any():
            found[f"HasAns_{name}"] = 100 * float(scores[answered].mean())
    return found


def _best_threshold(kept: np.ndarray, blank: np.ndarray, doubt: np.ndarray) -> tuple[float, float]:
    """The threshold above which taking answers away scores best, and the mean score there.

    kept, blank: scores of each question with its answer and without. The lowest of equally good thresholds.
    """
    order = np.argsort(doubt, kind="stable")
    gains = np.concatenate([[0.0], np.cumsum((kept - blank)[order])])
    thresholds = np.concatenate([[doubt.min() - 1], doubt[order]])
    # questions of equal doubt are taken away together
    last = np.append(thresholds[1:] != thresholds[:-1], True)
    place = int(np.argmax(np.where(last, gains, -np.inf)))
    return float(thresholds[place]), float((blank.sum() + gains[place]) / len(kept))


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, 2 and L in percent, words stemmed.

    `rougeLsum` is the ROUGE-L that papers give for summaries: by sentences, which are lines or, in a text of one
    line, end with a stop.
    """
    assert len(predictions) == len(references) > 0
    scorer = _library("rouge_score.rouge_scorer", "rouge-score").RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(_lines(true), _lines(said)) for said, true in zip(predictions, references, strict=True)]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in ROUGE}


def _lines(text: str) -> str:
    return text if "\n" in text.strip() else _SENTENCE_END.sub("\n", text.strip())
