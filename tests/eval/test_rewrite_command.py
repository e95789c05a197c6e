"""The command that writes a data set with a model's own answers: what it writes, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apt_ds.commands import rewrite
from apt_ds.config.errors import UserError
from apt_ds.data.conversations import load_examples
from tests.support import tiny
from tests.support.launcher import Place


def words(place: Place, output: Path, *more: str) -> list[str]:
    own = ["--model_name_or_path", str(place.folder / "model"), "--data_path", str(place.folder / "data.json")]
    return [*own, "--output", str(output), "--max_new_tokens", "6", "--max_seq_length", "64", *more]


def test_the_file_has_the_answers_and_their_ends(
    alone: None, place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.jsonl"
    figures = rewrite.rewrite(rewrite.parser().read(words(place, output, "--limit", "7")))
    examples, originals = load_examples(output), load_examples(place.folder / "data.json")[:7]
    assert [example.instruction for example in examples] == [example.instruction for example in originals]
    assert all(len(example.output.split()) == 6 for example in examples if example.unfinished)
    reasons = [json.loads(line)["finish_reason"] for line in output.read_text("utf-8").splitlines()]
    assert reasons.count("length") == figures["unfinished"] and figures["rewritten"] == len(reasons) == 7
    ended = capfd.readouterr()
    assert f"{output}: 7 answers rewritten" in ended.out and "rewriting 7 of 7 answers greedily" in ended.err
    assert figures["unfinished"] <= 3 or "did not end at the limit of --max_new_tokens" in ended.err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--output", "answers.txt"], "give a name that ends in .jsonl"),
        (["--output", "no/such/answers.jsonl"], "its folder 'no/such' does not exist"),
        (["--output", "/proc/self/answers.jsonl"], "'/proc/self/answers.jsonl' cannot be written: "),
        (["--data_path", "{text}"], "holds plain text, which has no answers"),
        (["--max_seq_length", "500"], "--max_seq_length 500 is longer than the model's context of 128 tokens"),
        (["--temperature", "hot"], "'hot' is not allowed: give 0, or at least 0.01 and at most 100"),
        (["--temperature", "1e-300"], "'1e-300' is not allowed: give 0, or at least 0.01 and at most 100"),
        (["--temperature", "nan"], "'nan' is not allowed: give 0, or at least 0.01 and at most 100"),
        (["--seed", str(2**64 - 1)], "is not allowed: give a whole number, at least 0 and at most 9223372036854775807"),
        (["--max_new_token", "3"], "--max_new_token is an unknown option"),
    ],
)
def test_mistakes_are_one_line(alone: None, place: Place, tmp_path: Path, flags: list[str], problem: str) -> None:
    text = place.spoiled("text.txt", " ".join(tiny.WORDS))
    given = words(place, tmp_path / "a.jsonl", *(flag.format(text=text) for flag in flags))
    with pytest.raises(UserError) as caught:
        rewrite.rewrite(rewrite.parser().read(given))
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_name_of_the_output_that_is_too_long_is_refused(place: Place) -> None:
    with pytest.raises(UserError, match=r"^--output 'xx.* is not a file or folder.*: give a shorter name$"):
        rewrite.rewrite(rewrite.parser().read(words(place, Path(f"{300 * 'x'}.jsonl"))))


def test_no_file_is_overwritten(place: Place, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    output.write_text("kept", "utf-8")
    with pytest.raises(UserError, match="exists already"):
        rewrite.rewrite(rewrite.parser().read(words(place, output)))
    assert output.read_text("utf-8") == "kept"
