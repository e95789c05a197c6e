"""Files as they come: halves of characters, byte order marks, blank lines, and pointers of Git LFS."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import glue, mmlu, seq2seq, squad
from apt_ds.data.conversations import load_examples
from apt_ds.data.readers import read_file
from apt_ds.data.text import read_pieces
from apt_ds.eval.corpus_perplexity import Corpus
from tests.support import tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
RECORD = {"instruction": "Add.", "input": "", "output": "nice \ud83d"}
WHOLE = {"instruction": "Add.", "input": "", "output": "nice \U0001f600"}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_lone_surrogates_are_replaced_with_one_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [WHOLE, RECORD, {**WHOLE, "output": "\udc00x\ud800"}]
    lines = [json.dumps(record) for record in records]
    (tmp_path / name).write_text(f"[{','.join(lines)}]" if name == "a.json" else "\n".join(lines), "utf-8")
    with caplog.at_level(logging.WARNING):
        examples = load_examples(tmp_path / name)
    assert [one.output for one in examples] == ["nice \U0001f600", "nice \ufffd", "\ufffdx\ufffd"]
    assert len(caplog.records) == 1
    place = "line 2" if name == "a.jsonl" else "record 2"
    assert "in 2 records" in caplog.text and place in caplog.text
    tiny.tokenizer()(examples[1].output)


def test_lone_surrogates_are_found_at_any_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    call = {"name": "weather", "arguments": json.dumps({"town": "K\ud83dln"})}
    parts = [{"type": "text", "text": "a\udfff"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": [call]}]
    turns += [{"role": "tool", "content": "sun"}, {"role": "assistant", "content": "Sunny"}]
    (tmp_path / "a.json").write_text(json.dumps([{"messages": turns}]), "utf-8")
    (example,) = load_examples(tmp_path / "a.json")
    assert example.messages[0]["content"] == "a\ufffd"
    assert example.messages[1]["tool_calls"][0]["function"]["arguments"] == {"town": "K\ufffdln"}
    (tmp_path / "b.json").write_text(json.dumps([{"\ud800": 1}, {"a": 1}]), "utf-8")
    assert [record for _, record in read_file(tmp_path / "b.json")] == [{"\ufffd": 1}, {"a": 1}]


def test_pairs_of_surrogates_are_no_reason_to_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.json").write_text(json.dumps([WHOLE]), "utf-8")
    with caplog.at_level(logging.WARNING):
        assert load_examples(tmp_path / "a.json")[0].output == WHOLE["output"]
    assert not caplog.records


READERS: dict[str, Callable[[str], object]] = {
    "a.json": load_examples,
    "a.jsonl": load_examples,
    "train.tsv": lambda path: glue.read("sst2", path, "train"),
    "train.csv": lambda path: glue.read("sst2", path, "train"),
    "dev.json": lambda path: squad.read(path, "validation"),
    "b.jsonl": lambda path: seq2seq.read("text", path, "train"),
    "anatomy_dev.csv": lambda path: mmlu.read_csv(Path(path), "anatomy"),
    "a.txt": lambda path: list(read_pieces(Path(path), "--perplexity_path")),
    "b.txt": lambda path: Corpus(path).text(),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_of_git_lfs_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(POINTER, "utf-8")
    with pytest.raises(UserError) as caught:
        READERS[name](str(path))
    assert f"{path} is a Git LFS pointer" in str(caught.value) and "git lfs pull" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.tsv", "sentence\tlabel\r\n\r\nthe cat\t1\r\n  \r\n"),
        ("train.csv", "sentence,label\r\n\r\nthe cat,1\r\n  \r\n\r\n"),
        ("train.jsonl", '{"sentence": "the cat", "label": 1}\r\n\r\n  \r\n'),
        ("train.json", '[{"sentence": "the cat", "label": 1}]\r\n\r\n'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_blank_lines_are_no_records(name: str, text: str, mark: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes((mark + text).encode())
    (pair,) = glue.read("sst2", str(tmp_path / name), "train")
    assert (pair.first, pair.label) == ("the cat", 1)


def test_files_that_were_joined_have_marks_inside(tmp_path: Path) -> None:
    line = json.dumps(WHOLE) + "\n"
    (tmp_path / "a.jsonl").write_text(f"\ufeff{line}\ufeff{line}", "utf-8")
    assert len(load_examples(tmp_path / "a.jsonl")) == 2


def test_a_corpus_begins_with_its_text(tmp_path: Path) -> None:
    plain, marked = tmp_path / "a.txt", tmp_path / "b.txt"
    plain.write_text("the cat sees a dog\n\nthe end", "utf-8")
    marked.write_bytes("\ufeffthe cat sees a dog\r\n\r\nthe end".encode())
    assert Corpus(str(marked)).text() == Corpus(str(plain)).text() == plain.read_text("utf-8")
    pieces = [list(read_pieces(path, "--perplexity_path")) for path in (marked, plain)]
    assert pieces[0] == pieces[1] == [plain.read_text("utf-8")]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 20])
def test_pieces_of_a_text_file_are_the_whole(size: int, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "öne\r\n\r\rtwo €\U0001f600\n\r\n".encode() + b"\r")
    assert "".join(read_pieces(path, "--data_path", size)) == "öne\n\n\ntwo €\U0001f600\n\n\n"


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"abc\xe2\x82x", r"is not UTF-8 text \(byte 3\)"),
        (b"abcd\xe2\x82", r"is not UTF-8 text \(byte 4\)"),
        (b"\xef\xbb\xbfab\xff", r"is not UTF-8 text \(byte 5\)"),
    ],
)
def test_bytes_that_are_no_text_are_named(content: bytes, problem: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        list(read_pieces(tmp_path / "text.txt", "--data_path", size))


def test_a_file_without_text_is_refused_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data_path: .*absent.txt cannot be read: No such file"):
        list(read_pieces(tmp_path / "absent.txt", "--data_path"))
    (tmp_path / "text.txt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        list(read_pieces(tmp_path / "text.txt", "--data_path"))
