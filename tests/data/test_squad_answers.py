"""SQuAD: answers from the logits of windows, and their score over several processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apt_ds.data import squad
from apt_ds.data.squad import NO_ANSWER
from apt_ds.data.squad_answers import answers
from tests.data.test_squad import CONTEXT, asked
from tests.support import eval_jobs, multiprocess, tiny
from tests.support.text_fixtures import minilm, pair_tokenizer


def logits(windows: squad.Features, peaks: dict[int, tuple[int, int, float]], blank: float = 0.0) -> tuple[list, list]:
    """Per window its peak: first token, last token, height of each; all else 0, CLS `blank`; 5 padded tokens of 99."""
    values_by_side: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for i, row in enumerate(windows.rows.rows):
        for side in (0, 1):
            values = np.zeros(len(row["input_ids"]) + 5, np.float32)
            values[len(row["input_ids"]) :] = 99
            values[NO_ANSWER] = blank
            if i in peaks:
                values[peaks[i][side]] = peaks[i][2]
            values_by_side[side].append(values)
    return values_by_side


def test_answers_are_the_best_piece_of_any_window() -> None:
    tok = pair_tokenizer()
    questions = [asked("the", CONTEXT, id="a"), asked("the", " ".join(f"w{i}" for i in range(30)), id="b")]
    windows = squad.windows(questions, tok, 17, 4)
    assert windows.examples == (0, 1, 1, 1)
    starts, ends = logits(windows, {0: (8, 9, 3.0), 1: (3, 4, 2.0), 3: (5, 7, 4.0)}, blank=1.0)
    ends[3][0] = -2.0  # the lowest CLS of the windows counts
    best = answers(windows, starts, ends, questions)
    assert best["a"] == ("red dog", 2.0 - 6.0)
    last = [span for span in windows.offsets[3] if span]
    assert best["b"] == (questions[1].context[last[2][0] : last[4][1]], -1.0 - 8.0)
    assert answers(windows, starts, ends, questions, max_answer=2)["b"][0] != best["b"][0]


def test_an_answer_neither_ends_before_it_starts_nor_lies_in_the_question() -> None:
    tok = pair_tokenizer()
    questions = [asked("the cat", CONTEXT, id="a")]
    windows = squad.windows(questions, tok, 32, 4)
    starts, ends = logits(windows, {0: (9, 6, 5.0)})
    starts[0][1] = ends[0][2] = 50.0
    text, doubt = answers(windows, starts, ends, questions)["a"]
    assert text and text in CONTEXT and doubt == -5.0


def test_a_context_without_tokens_has_no_answer() -> None:
    question = asked("the", "\u2028", ("\u2028", 0), id="a")
    windows = squad.windows([question], pair_tokenizer(), 32, 4)
    assert answers(windows, *logits(windows, {}), [question]) == {"a": ("", 0.0)}


def test_answers_to_real_questions_are_found_in_their_windows(real_data: Path) -> None:
    tok = minilm()
    questions = squad.read(str(real_data / "squad_v2" / "dev_a.json"), "validation")
    assert len(questions) == 6078 and len({q.title for q in questions}) == 16
    assert all(question.span() for question in questions if question.answers)
    part = questions[:150]
    rows, windows = squad.encode(part, tok), squad.windows(part, tok)
    assert len(rows) == len(windows.rows) and rows.dropped == 0
    heights = [(row["targets"][0], row["targets"][1], 9.0) for row in rows.rows]
    best = answers(windows, *logits(windows, dict(enumerate(heights))), part)
    for question in part:
        text, doubt = best[question.id]
        if span := question.span():
            answer = question.context[slice(*span)]
            assert (text.startswith(answer) and doubt < 0) or len(tok(answer)["input_ids"]) > 30, (text, answer)
        else:
            assert doubt > 0


@pytest.mark.dist
def test_ranks_exchange_answers_and_no_logits() -> None:
    evaluator = eval_jobs.span_evaluator()
    alone = evaluator.evaluate(tiny.small("bert-answers").eval(), 4, 0)
    result = multiprocess.run(2, "eval_jobs.span_scores", {})
    assert result["scores"] == alone and 0 < alone["f1"] < 100
    # two logits of four bytes for each of some 20 tokens would be 160 bytes a window
    assert result["sent"] < 90 * len(evaluator.features.rows) / 2
