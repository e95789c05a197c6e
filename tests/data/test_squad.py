"""SQuAD's files and what cannot be read, windows and their targets, answers from logits, the split by article."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import squad
from apt_ds.data.squad import NO_ANSWER, Question
from tests.support.text_fixtures import pair_tokenizer, squad_json, write

CONTEXT = "the big cat sees a red dog on the tree"
GOOD = squad_json(
    (CONTEXT, [("the cat sees", [("red dog", 19), ("a red dog", 17)]), ("the house", [])]),
    ("two blue house", [("one", [("blue", 4)])]),
)


def asked(question: str, context: str, *answers: tuple[str, int], id: str = "q", title: str = "") -> Question:
    """A question to be tokenized."""
    return Question(id, title, context, question, answers)


def changed(*path: Any, value: Any) -> dict[str, Any]:
    """GOOD with the value at a path replaced, or removed if it is `...`."""
    content: Any = copy.deepcopy(GOOD)
    node = content["data"]
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


def test_articles_and_flat_records_are_read(tmp_path: Path) -> None:
    questions = squad.read(write(tmp_path / "train.json", GOOD), "train")
    assert questions == squad.read(str(tmp_path), "train")
    assert questions[0] == Question("q00", "title 0", CONTEXT, "the cat sees", (("red dog", 19), ("a red dog", 17)))
    assert [(q.id, q.title, len(q.answers), q.span()) for q in questions] == [
        ("q00", "title 0", 2, (19, 26)),
        ("q01", "title 0", 0, None),
        ("q10", "title 1", 1, (4, 8)),
    ]
    flat = '{"id": "q10", "title": "title 1", "context": "two blue house", "question": "one", "answers": %s}'
    for answers in ('{"text": ["blue"], "answer_start": [4]}', '[{"text": "blue", "answer_start": 4}]'):
        assert squad.read(write(tmp_path / "a.jsonl", flat % answers), "train") == questions[2:]


def test_the_hub_is_asked_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    record = {
        "id": "q",
        "title": "t",
        "context": "a dog",
        "question": "the",
        "answers": {"text": [], "answer_start": []},
    }
    names = []

    def load(name: str, split: str) -> list[dict[str, Any]]:
        names.append((name, split))
        return [record]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert squad.read("squad_v2", "validation") == [asked("the", "a dog", title="t")]
    assert squad.read("some/squad", "train") and names == [
        ("rajpurkar/squad_v2", "validation"),
        ("some/squad", "train"),
    ]


FIRST = (0, "paragraphs", 0, "qas", 0)
ANSWER = (*FIRST, "answers", 0)
PLACE = "record 1, paragraph 1, question 1"
WRONG = [
    (changed(0, value=3), "record 1: a record must be an object, not int"),
    (changed(0, "paragraphs", value=...), r"record 1: no column 'paragraphs' \(it has: title\)"),
    (changed(0, "paragraphs", value="x"), "record 1: 'paragraphs' must be a list, not str"),
    (changed(0, "paragraphs", 0, value=None), "record 1, paragraph 1: a record must be an object, not null"),
    (changed(0, "paragraphs", 0, "context", value=...), f"{PLACE}: no column 'context'"),
    (changed(0, "paragraphs", 0, "context", value=" "), f"{PLACE}: the context is empty"),
    (changed(0, "title", value=1), f"{PLACE}: 'title' must be text, not int"),
    (changed(*FIRST, "question", value=""), f"{PLACE}: the question is empty. Fill it in"),
    (changed(*FIRST, "id", value=4), f"{PLACE}: 'id' must be text, not int"),
    (changed(*FIRST, "id", value="q10"), "record 2, paragraph 1, question 1: the id 'q10' is that of .*" + PLACE),
    (changed(*FIRST, "answers", value=...), f"{PLACE}: no column 'answers'"),
    (changed(*ANSWER, value="x"), f"{PLACE}, answer 1: a record must be an object, not str"),
    (changed(*ANSWER, "text", value=None), f"{PLACE}, answer 1: 'text' must be text, not null"),
    (changed(*ANSWER, "answer_start", value="4"), f"{PLACE}, answer 1: 'answer_start' must be a whole number, not str"),
    (changed(*ANSWER, "answer_start", value=True), f"{PLACE}, answer 1: 'answer_start' must be a whole number"),
    (changed(*ANSWER, "answer_start", value=...), f"{PLACE}, answer 1: no column 'answer_start'"),
    ({"data": []}, "holds no questions"),
    ({"version": "v2.0"}, "must hold a list of records, or an object with such a list under 'data'"),
    (
        [{"context": "a", "question": "b", "id": "c", "answers": {"text": ["a"], "answer_start": []}}],
        "1 texts of answers, but 0",
    ),
    ([{"context": "a", "question": "b", "id": "c", "answers": {"text": ["a"]}}], "no column 'answer_start'"),
    ("{", "line 1, column 2: not valid JSON"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_what_cannot_be_read_is_one_line(content: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=message) as caught:
        squad.read(path, "train")
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_answers_outside_their_context_are_left_out_of_training_and_kept_for_judging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tok = pair_tokenizer()
    misplaced = [("red dog", 18), ("red dog", -8), ("cat", 10**30), ("", 4), (" ", 3), ("blue", 0)]
    questions = [asked("the", CONTEXT, one, id=f"q{i}") for i, one in enumerate(misplaced)]
    good = asked("the", CONTEXT, ("blue", 0), ("red dog", 19), id="good")
    with caplog.at_level(logging.WARNING):
        rows = squad.encode([*questions, good, asked("the", CONTEXT, id="none")], tok, 32, 4)
    assert rows.dropped == len(misplaced) and len(rows) == 2
    assert f"left out {len(misplaced)} questions whose answers lie outside their context, the first: q0" in caplog.text
    assert rows[0]["targets"] != rows[1]["targets"] == [NO_ANSWER, NO_ANSWER]
    assert set(squad.windows([*questions, good], tok, 32, 4).examples) == set(range(len(misplaced) + 1))
    with pytest.raises(UserError, match="none of the 6 answers lies in its context where it says"):
        squad.encode(questions, tok, 32, 4)


def test_targets_are_the_tokens_of_the_answer() -> None:
    tok = pair_tokenizer()
    rows = squad.encode([asked(" the cat ", CONTEXT, (" red dog ", 18))], tok, 32, 4)
    assert rows.rows == (
        {
            "input_ids": [1, 4, 6, 2, 4, 10, 6, 8, 5, 12, 7, 24, 4, 15, 2],
            "token_type_ids": [0] * 4 + [1] * 11,
            "targets": [9, 10],
        },
    )
    inside_a_word = squad.encode([asked("the", "the house", ("ous", 5))], tok, 32, 4)
    assert inside_a_word[0]["targets"] == [4, 4]
    assert "token_type_ids" not in squad.encode([asked("the", CONTEXT)], pair_tokenizer(types=False), 32, 4)[0]


def test_windows_overlap_and_cover_the_context() -> None:
    tok = pair_tokenizer()
    words = [f"w{i}" for i in range(40)]
    context = " ".join(words)
    answer = "w10 w11 w12"  # begins in the first window, whole in the second
    question = asked("the cat", context, (answer, context.index(answer)))
    windows = squad.windows([question], tok, 17, 4)
    seen = [[context[a:b] for a, b in filter(None, offsets)] for offsets in windows.offsets]
    # 17 less 3 special tokens and 2 of the question; each begins with the last 4 of the one before
    assert [(len(part), part[0]) for part in seen] == [(12, "w0"), (12, "w8"), (12, "w16"), (12, "w24"), (8, "w32")]
    rows = squad.encode([question], tok, 17, 4)
    assert [row["targets"] == [NO_ANSWER, NO_ANSWER] for row in rows.rows] == [True, False, True, True, True]
    first, last = rows[1]["targets"]
    assert tok.decode(rows[1]["input_ids"][first : last + 1]) == answer


def test_long_questions_are_cut_and_short_windows_refused() -> None:
    tok = pair_tokenizer()
    rows = squad.encode([asked("cat " * 200, CONTEXT)], tok, 120, 8)
    assert rows[0]["input_ids"].count(6) == 60 + 1
    for length, stride, message in (
        (16, 10, "windows of 16 tokens leave 10 for the context, which cannot overlap by 10. Raise --max_seq_length"),
        (4, 1, "a length of 4 tokens leaves no room beside 3 special ones"),
    ):
        with pytest.raises(UserError, match=message):
            squad.encode([asked("the cat sees", CONTEXT)], tok, length, stride)


def test_the_split_keeps_articles_whole() -> None:
    questions = [asked("the", CONTEXT, id=f"{t}{i}", title=f"t{t}") for t in range(10) for i in range(t + 1)]
    train, held_out = squad.split_by_article(questions, 0.2, seed=3)
    assert (train, held_out) == squad.split_by_article(questions, 0.2, seed=3)
    assert not {q.title for q in train} & {q.title for q in held_out}
    assert sorted(train + held_out, key=questions.index) == questions and 11 <= len(held_out) < 11 + 10
    assert held_out != squad.split_by_article(questions, 0.2, seed=4)[1]
    for fraction in (0.0, 1.0):
        assert all(squad.split_by_article(questions, fraction, seed=3))
    with pytest.raises(UserError, match="all of one article and cannot be split by article"):
        squad.split_by_article(questions[:1], 0.2, seed=0)
