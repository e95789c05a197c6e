"""Pairs of texts from files, GLUE in T5's words, and rows whose labels have a length of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import seq2seq
from apt_ds.data.glue import GLUE, Pair
from apt_ds.data.seq2seq import Exchange, encode, label_word, predicted, prompt
from tests.support import tiny
from tests.support.text_fixtures import pair_tokenizer, write


@pytest.mark.parametrize(("source", "target"), seq2seq.COLUMNS)
@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv"])
def test_pairs_are_read_from_files_and_folders(source: str, target: str, ending: str, tmp_path: Path) -> None:
    contents: dict[str, Any] = {
        "json": [{"id": 1, source: "the cat", target: "a dog"}],
        "jsonl": f'{{"{source}": "the cat", "{target}": "a dog"}}\n',
        "csv": f'id,{source},{target}\n1,"the cat",a dog\n',
        "tsv": f"{target}\t{source}\na dog\tthe cat\n",
    }
    path = write(tmp_path / f"validation.{ending}", contents[ending])
    place = f"{path}, {'record 1' if ending == 'json' else 'line 1' if ending == 'jsonl' else 'line 2'}"
    assert seq2seq.read("text", path, "train") == [Exchange("the cat", "a dog", place)]
    assert seq2seq.read("cnndm", str(tmp_path), "validation") == [Exchange("summarize: the cat", "a dog", place)]


def test_the_hub_is_asked_for_the_version_of_the_summaries(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(*name: str, split: str) -> list[dict[str, Any]]:
        asked.append((*name, split))
        return [{"article": "the cat", "highlights": "a dog", "id": "1"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert seq2seq.read("cnndm", "cnn_dailymail", "train")[0].target == "a dog"
    assert seq2seq.read("text", "some/pairs", "validation")[0].source == "the cat"
    assert asked == [("abisee/cnn_dailymail", "3.0.0", "train"), ("some/pairs", "validation")]


WRONG = [
    (
        "text",
        [{"article": "a", "summary": "b"}],
        r"record 1: no two columns to learn from \(it has: article, summary\)",
    ),
    ("text", [{"source": "a", "target": 3}], "record 1: 'target' must be text, not int"),
    ("text", [{"source": None, "target": "b"}], "record 1: 'source' must be text, not null"),
    ("cnndm", [{"source": " ", "target": "b"}], "record 1: the source or the target is empty. Mend or remove"),
    ("text", [{"source": "a", "target": ""}], "record 1: the source or the target is empty"),
    ("text", [3], "record 1: a record must be an object, not int"),
    ("text", [{}], r"record 1: no column 'article' \(it has: nothing\)"),
    ("text", [], "holds no records"),
    ("t5-sst2", [{"sentence": "a", "label": 2}], "record 1: '2' is not a label of sst2"),
    ("t5-sst3", [], "unknown task 't5-sst3'. Give one of cnndm, text, t5-sst2"),
]


@pytest.mark.parametrize(("task", "content", "message"), WRONG, ids=[message[:50] for *_, message in WRONG])
def test_what_cannot_be_read_is_one_line(task: str, content: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=message) as caught:
        seq2seq.read(task, path, "train")
    assert "\n" not in str(caught.value)


def test_a_few_empty_ones_in_a_large_set_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [{"article": "the cat", "highlights": "a dog"}] * 150 + [{"article": "", "highlights": "a dog"}]
    with caplog.at_level(logging.WARNING):
        assert len(seq2seq.read("cnndm", write(tmp_path / "a.json", records), "train")) == 150
    assert "record 151" in caplog.text


PROMPTS = {
    "sst2": ("sst2 sentence: one", "positive"),
    "mnli": ("mnli hypothesis: two premise: one", "neutral"),
    "qnli": ("qnli question: one sentence: two", "not_entailment"),
    "qqp": ("qqp question1: one question2: two", "duplicate"),
    "mrpc": ("mrpc sentence1: one sentence2: two", "equivalent"),
    "cola": ("cola sentence: one", "acceptable"),
    "rte": ("rte sentence1: one sentence2: two", "not_entailment"),
    "stsb": ("stsb sentence1: one sentence2: two", "1.0"),
}


@pytest.mark.parametrize("task", GLUE)
def test_glue_in_the_words_of_t5(task: str) -> None:
    assert prompt(task, Pair("one", "two" if len(GLUE[task].texts) > 1 else "", 1, "here")) == (*PROMPTS[task], "here")
    labels = GLUE[task].labels
    for label in (0.0, 2.6, 5.0) if labels is None else range(len(labels)):
        assert predicted(task, f" {label_word(task, label)} ") == label
    for nothing in ("", "positively", "-1", "5.1", "nan"):
        assert predicted(task, nothing) == seq2seq.NO_LABEL


def test_scores_are_written_in_steps() -> None:
    assert [label_word("stsb", score) for score in (0.0, 2.499, 3.25, 4.95, 5.0)] == ["0.0", "2.4", "3.2", "5.0", "5.0"]


def test_glue_files_become_exchanges(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "sentence\tlabel\nthe cat\t1\n")
    expected = [Exchange("sst2 sentence: the cat", "positive", f"{path}, line 2")]
    assert seq2seq.read("t5-sst2", str(tmp_path), "train") == expected


def test_both_sides_are_cut_and_ended() -> None:
    tok = tiny.tokenizer()
    rows = encode([Exchange("the cat", "a dog", ""), Exchange("the " * 20, "a " * 20, "")], tok, 8, 4)
    assert rows.rows == (
        {"input_ids": [4, 6, 2], "labels": [5, 7, 2]},
        {"input_ids": [4] * 7 + [2], "labels": [5] * 3 + [2]},
    )
    with pytest.raises(UserError, match="no eos_token to end a text with"):
        encode([Exchange("the cat", "a dog", "")], pair_tokenizer(framed=False), 8, 4)
    with pytest.raises(UserError, match="a length of 1 tokens leaves no room"):
        encode([Exchange("the cat", "a dog", "")], tok, 8, 1)


def test_real_sentences_are_read_as_text(real_data: Path) -> None:
    exchanges = seq2seq.read("t5-rte", str(real_data / "rte"), "validation")
    assert len(exchanges) == 277 and {one.target for one in exchanges} == {"entailment", "not_entailment"}
    assert (
        exchanges[0].source.startswith("rte sentence1: Dana Reeve") and " sentence2: Christopher" in exchanges[0].source
    )
