"""GLUE's files in all their layouts, its labels, what cannot be read, its rows, and tokenizers that do not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
    T5Config,
)

from apt_ds.config.errors import UserError
from apt_ds.data import glue
from apt_ds.data.glue import GLUE, Pair, labels_of
from apt_ds.data.tokenizer_checks import check_tokenizer
from apt_ds.models.architectures import architecture_of
from tests.support import tiny
from tests.support.text_fixtures import minilm, pair_tokenizer, write

ONE = [("the cat", "", 1), ("a dog", "", 0)]
TWO = [("the cat", "a dog", 1), ('a "red dog', "the house", 0)]
# task, file, content, what it says
LAYOUTS = [
    ("sst2", "train.tsv", "sentence\tlabel\nthe cat\t1\na dog\tnegative\n", ONE),
    ("sst2", "train.tsv", "sentence\tlabel\r\nthe cat\t1\r\n\r\na dog\t0\r\n", ONE),
    ("sst2", "train.tsv", "\ufefflabel\tsentence\n1\tthe cat\n0\ta dog", ONE),
    ("sst2", "train.csv", 'sentence,label\n"the cat",positive\na dog,0\n', ONE),
    ("sst2", "train.json", [{"sentence": "the cat", "label": 1}, {"sentence": "a dog", "label": "negative"}], ONE),
    ("sst2", "train.jsonl", '{"sentence": "the cat", "label": 1}\n\n{"sentence": "a dog", "label": 0}\n', ONE),
    (
        "rte",
        "train.tsv",
        'index\tsentence1\tsentence2\tlabel\n0\tthe cat\ta dog\tnot_entailment\n1\ta "red dog\tthe house\tentailment\n',
        TWO,
    ),
    ("qnli", "train.csv", 'question,sentence,label\nthe cat,a dog,1\n"a ""red dog",the house,0\n', TWO),
    (
        "mnli",
        "train.tsv",
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tthe cat\ta dog\tneutral\tneutral\n"
        '1\ta "red dog\tthe house\tcontradiction\tentailment\n',
        TWO,
    ),
    (
        "qqp",
        "train.tsv",
        'id\tquestion1\tquestion2\tis_duplicate\n7\tthe cat\ta dog\t1\n8\ta "red dog\tthe house\t0',
        TWO,
    ),
    (
        "mrpc",
        "train.tsv",
        'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tthe cat\ta dog\n0\t7\t8\ta "red dog\tthe house\n',
        TWO,
    ),
    ("cola", "train.tsv", "gj04\t1\t\tthe cat\ngj04\t0\t*\ta dog\n", ONE),
    ("cola", "train.tsv", "sentence\tlabel\nthe cat\t1\na dog\t0\n", ONE),
    ("stsb", "train.tsv", 'sentence1\tsentence2\tscore\nthe cat\ta dog\t1.000\na "red dog\tthe house\t0\n', TWO),
]


@pytest.mark.parametrize(("task", "name", "content", "expected"), LAYOUTS)
def test_a_layout_is_read(task: str, name: str, content: Any, expected: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    pairs = glue.read(task, path, "train")
    assert [tuple(pair[:3]) for pair in pairs] == expected and pairs == glue.read(task, str(tmp_path), "train")
    assert all(type(pair.label) is (float if GLUE[task].labels is None else int) for pair in pairs)
    assert pairs[0].where.startswith(f"{path}, ")


def test_a_place_is_the_line_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'sentence,label\n"the\ncat",1\n\na dog,0\n')
    assert [pair.where for pair in glue.read("sst2", path, "train")] == [f"{path}, line 3", f"{path}, line 5"]
    path = write(tmp_path / "a.tsv", "sentence\tlabel\nthe \u2028 cat\t1\n\na dog\t0\n")
    assert [pair.where for pair in glue.read("sst2", path, "train")] == [f"{path}, line 2", f"{path}, line 4"]


@pytest.mark.parametrize(("task", "stem"), [("sst2", "validation"), ("sst2", "dev"), ("mnli", "dev_matched")])
def test_a_folder_has_a_file_for_each_split(task: str, stem: str, tmp_path: Path) -> None:
    columns = "\t".join([names[0] for names in GLUE[task].texts] + ["label"])
    for name, label in (("train", 0), (stem, 1), ("test", 0), ("dev_mismatched", 0)):
        write(tmp_path / f"{name}.tsv", f"{columns}\n" + "\t".join(["the cat"] * len(GLUE[task].texts) + [str(label)]))
    assert [glue.read(task, str(tmp_path), split)[0].label for split in ("train", "validation")] == [0, 1]


HEAD = "sentence\tlabel\n"
WRONG = [
    (
        "sst2",
        "a.tsv",
        f"{HEAD}the cat\t1\na dog\t2\n",
        r"a\.tsv, line 3: '2' is not a label of sst2\. Give negative or 0",
    ),
    (
        "sst2",
        "a.tsv",
        f"{HEAD}the cat\tgood\n",
        "line 2: 'good' is not a label of sst2. Give negative or 0, positive or 1",
    ),
    ("sst2", "a.tsv", f"{HEAD}the cat\t-1\n", "line 2: '-1' is not a label"),
    ("sst2", "a.tsv", f"{HEAD}the cat\t\n", "line 2: '' is not a label"),
    ("sst2", "a.jsonl", '{"sentence": "the cat", "label": true}', "line 1: 'True' is not a label"),
    ("sst2", "a.json", [{"sentence": "the cat", "label": None}], "record 1: 'null' is not a label"),
    ("sst2", "a.json", [{"sentence": 3, "label": 1}], "record 1: 'sentence' must be text, not int"),
    ("sst2", "a.json", ["the cat"], "record 1: a record must be an object, not str"),
    ("sst2", "a.json", "[" * 100_000, r"a\.json, line 1, column 1: not valid JSON"),
    ("sst2", "a.json", [{"sentence": "  ", "label": 1}], "record 1: there is no text. Mend or remove the record"),
    (
        "mnli",
        "a.tsv",
        "sentence1\tsentence2\tlabel\na\tb\tmaybe\n",
        "Give entailment or 0, neutral or 1, contradiction or 2",
    ),
    (
        "stsb",
        "a.tsv",
        "sentence1\tsentence2\tscore\na\tb\t5.1\n",
        "line 2: '5.1' is not a score of stsb. Give a number from 0 to 5",
    ),
    ("stsb", "a.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n", "line 2: 'nan' is not a score"),
    ("stsb", "a.tsv", "sentence1\tsentence2\tscore\na\tb\tgood\n", "line 2: 'good' is not a score"),
    ("rte", "a.tsv", f"{HEAD}the cat\t1\n", r"line 2: no column 'sentence1' \(it has: sentence, label\)"),
    ("mrpc", "a.tsv", f"{HEAD}the cat\t1\n", "line 2: no column 'sentence1 or #1 String'"),
    ("sst2", "a.tsv", "sentence\tscore\nthe cat\t1\n", "line 2: no column 'label'"),
    ("sst2", "a.tsv", f"{HEAD}the cat\n", "line 2: not the 2 columns of the first line. Mend or remove"),
    ("sst2", "a.tsv", f"{HEAD}the\tcat\t1\na\tb\t0", r"line 2: not the 2 columns .* \(as in 1 more records\)"),
    ("sst2", "a.tsv", "label\tlabel\nthe cat\t1\n", "line 1: two columns have the same name"),
    ("sst2", "a.tsv", HEAD, r"a\.tsv holds no records"),
    ("sst2", "a.tsv", " \n", r"a\.tsv is empty"),
    ("sst2", "a.csv", 'sentence,label\n"the cat,1\n', r"a\.csv, line 2: not valid CSV"),
    ("sst2", "a.xlsx", "?", r"unknown file ending '\.xlsx'\. Use one of \.json, \.jsonl, \.tsv, \.csv"),
    ("cola", "a.tsv", "gj04\t2\t\tthe cat\n", "line 1: '2' is not a label of cola"),
    ("sst3", "a.tsv", HEAD, "unknown task 'sst3' of GLUE. Give one of sst2, mnli"),
]


@pytest.mark.parametrize(("task", "name", "content", "message"), WRONG, ids=[message[:50] for *_, message in WRONG])
def test_what_cannot_be_read_is_one_line(task: str, name: str, content: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        glue.read(task, path, "train")
    assert "\n" not in str(caught.value) and (path in str(caught.value) or task == "sst3")


def test_a_missing_file_and_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no validation\.\* nor dev\.\* \(endings: \.json"):
        glue.read("sst2", str(tmp_path), "validation")
    for name in ("train.tsv", "train.csv"):
        write(tmp_path / name, "sentence\tlabel\n")
    with pytest.raises(UserError, match=r"holds both train\.tsv and train\.csv\. Give the path"):
        glue.read("sst2", str(tmp_path), "train")
    for missing in ("missing.tsv", "./missing"):
        with pytest.raises(UserError, match=f"^no such data file or folder: {missing}. Give one that exists"):
            glue.read("sst2", missing, "train")


def test_a_few_torn_lines_of_a_large_file_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "train.tsv", HEAD + "the cat\t1\n" * 150 + "torn\n")
    with caplog.at_level(logging.WARNING):
        assert len(glue.read("sst2", path, "train")) == 150
    assert f"left out 1 records. {path}, line 152: not the 2 columns" in caplog.text


def test_the_hub_is_asked_for_the_right_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[Any, ...]] = []

    def load(*name: str, split: str) -> list[dict[str, Any]]:
        asked.append((*name, split))
        return [{"premise": "the cat", "hypothesis": "a dog", "label": 2, "idx": 0}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    expected = [Pair("the cat", "a dog", 2, "nyu-mll/glue, record 1")]
    assert glue.read("mnli", "glue", "train") == glue.read("mnli", "nyu-mll/glue", "validation") == expected
    assert glue.read("mnli", "someone/mnli", "train")[0].where == "someone/mnli, record 1"
    assert asked == [
        ("nyu-mll/glue", "mnli", "train"),
        ("nyu-mll/glue", "mnli", "validation_matched"),
        ("someone/mnli", "train"),
    ]


def test_every_task_has_the_classes_and_main_metric_of_glue() -> None:
    assert {task: len(labels_of(task)) for task in GLUE} == (
        dict.fromkeys(("sst2", "qnli", "qqp", "mrpc", "cola", "rte"), 2) | {"mnli": 3, "stsb": 0}
    )
    assert GLUE["cola"].main == "matthews" and GLUE["stsb"].main == "pearson" and GLUE["rte"].main == "accuracy"


def test_rows_are_framed_cut_and_labelled() -> None:
    tok = pair_tokenizer()
    single = glue.encode([Pair("the cat sees", "", 1, ""), Pair("a", "", 0, "")], tok, 8)
    assert single.rows == (
        {"input_ids": [1, 4, 6, 8, 2], "token_type_ids": [0] * 5, "targets": [1]},
        {"input_ids": [1, 5, 2], "token_type_ids": [0] * 3, "targets": [0]},
    )
    long = Pair("the " * 20, "a dog", 2, "")
    double = glue.encode([long, Pair("the", "", 0, "")], tok, 8)
    assert double[0]["input_ids"] == [1, 4, 4, 4, 2, 5, 7, 2] and double[0]["token_type_ids"] == [0] * 5 + [1] * 3
    assert double[1]["input_ids"] == [1, 4, 2, 2]
    scored = glue.encode([Pair("the", "a", 3.8, ""), Pair("the", "a", 5.0, "")], pair_tokenizer(types=False), 8)
    assert set(scored[0]) == {"input_ids", "targets"} and scored[0]["targets"] == pytest.approx([3.8])
    assert isinstance(scored[1]["targets"][0], float)
    with pytest.raises(UserError, match="a length of 4 tokens leaves no room beside 3 special ones"):
        glue.encode([long], tok, 4)


BERT, ROBERTA = {"vocab_size": 400, "pad_token_id": 0}, {"vocab_size": 400, "pad_token_id": 1}


def test_a_tokenizer_must_be_the_models() -> None:
    tok, bare = pair_tokenizer(), tiny.tokenizer()

    def check(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        check_tokenizer(tokenizer, config, architecture_of(config).special_tokens)

    check(tok, BertConfig(**BERT))
    check(bare, T5Config(**BERT))
    check(bare, LlamaConfig(vocab_size=226))
    wrong = [
        (
            tok,
            BertConfig(vocab_size=225, pad_token_id=0),
            "has ids up to 225, the model embeds only 225. Give the token",
        ),
        (bare, BertConfig(**BERT), "has no cls_token, which bert needs"),
        (tok, RobertaConfig(**ROBERTA), "pads with id 0, the model with 1"),
        (tok, T5Config(**BERT), "has no eos_token, which t5 needs"),
        (pair_tokenizer(framed=False), BertConfig(**BERT), "does not put text between <s> and </s>, which bert needs"),
    ]
    for tokenizer, config, message in wrong:
        with pytest.raises(UserError, match=message) as caught:
            check(tokenizer, config)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("task", "counts"), [("sst2", (6920, 872)), ("rte", (2490, 277))])
def test_real_files_are_read_whole_and_cut_to_a_length(task: str, counts: tuple[int, int], real_data: Path) -> None:
    splits = [glue.read(task, str(real_data / task), split) for split in ("train", "validation")]
    assert tuple(map(len, splits)) == counts
    assert all({pair.label for pair in pairs} == {0, 1} for pairs in splits)
    tok = minilm()
    config = AutoConfig.from_pretrained(tok.name_or_path)
    check_tokenizer(tok, config, architecture_of(config).special_tokens)
    rows = glue.encode(splits[1], tok, 64)
    assert len(rows) == counts[1] and max(len(row["input_ids"]) for row in rows.rows) <= 64
    first = next(pair.first for pair, row in zip(splits[1], rows.rows, strict=True) if len(row["input_ids"]) < 64)
    uncut = next(row for row in rows.rows if len(row["input_ids"]) < 64)
    assert tok.decode(uncut["input_ids"]).startswith("[CLS] " + first[:5].lower())
