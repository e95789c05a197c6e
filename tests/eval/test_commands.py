"""The evaluation script: what it prints, and every mistake as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import apt_ds
from apt_ds.commands import evaluate
from apt_ds.config.errors import UserError
from apt_ds.eval import inference_cost, loading
from apt_ds.runtime.files import check_writable
from tests.eval.commands import launch
from tests.support.launcher import script_caller


def test_the_script_says_what_its_number_depends_on(llamas: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    ended = launch(llamas, "--perplexity", str(llamas / "text.txt"), "--block_length", "64", "--json", str(path))
    assert ended.returncode == 0, ended.stderr
    assert "3 blocks of 64 tokens, no BOS" in ended.stdout
    assert json.loads(path.read_text(encoding="utf8"))["tokens"] == 189


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--perplexity", "no/such/file.txt"], "is neither a text file nor a data set that can be loaded"),
        (["--suite", "open-llm", "--efficiency"], "give one of --suite or --tasks, --perplexity, --efficiency"),
        (["--efficiency", "--rounds", "0"], "'0' is not allowed: give a whole number, at least 1"),
        (["--suite", "open-lm"], "--suite 'open-lm' is not allowed: give one of open-llm"),
        (["--suite", "open-llm", "--prompt_length", "64"], "--prompt_length requires --efficiency"),
        (["--tasks", "sciq", "--rounds", "5"], "--rounds requires --efficiency"),
        (["--perplexity", "{text}", "--limit", "5"], "--limit requires --suite or --tasks"),
        (["--perplexity", "{text}", "--data_dir=a"], "--data_dir requires --suite or --tasks"),
        (["--suite", "open-llm", "--num_fewshot", "0"], "--num_fewshot requires --tasks"),
        (["--efficiency", "--bos"], "--bos requires --perplexity"),
        (["--efficiency", "--split", "test"], "--split requires --perplexity"),
        (["--efficiency", "--batch_size", "2"], "--efficiency ignores --batch_size: give --inference_batch_size"),
        (
            ["--perplexity", "{text}", "--column", "text"],
            "--column requires a data set: --perplexity '{text}' is a text",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: list[str],
    line: str,
    llamas: Path,
    alone: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "--suite" in words:
        pytest.importorskip("lm_eval")
    words, line = [word.format(text=llamas / "text.txt") for word in words], line.format(text=llamas / "text.txt")
    ended = script_caller(evaluate.main, capfd, monkeypatch)("--model", str(llamas / "dense"), *words)
    assert (ended.status, len(ended.mistakes)) == (2, 1), ended.err
    assert line in ended.mistakes[0] and "Traceback" not in ended.err


def test_every_option_belongs_to_all_evaluations_or_to_one() -> None:
    own = [name for names in evaluate.OPTIONS_OF.values() for name in names]
    shared = ("model", "bf16", "trust_remote_code", "deepspeed", "json", "batch_size")
    chosen = ("suite", "tasks", "perplexity", "efficiency")
    assert sorted([*own, *shared, *chosen, "help"]) == sorted(
        name[2:] for name in evaluate.parser().names() if name != "-h"
    )


def test_python_is_told_of_an_option_of_another_evaluation(llamas: Path) -> None:
    with pytest.raises(UserError, match="--prompt_length requires --efficiency"):
        apt_ds.evaluate(llamas / "dense", perplexity=str(llamas / "text.txt"), prompt_length=64)


def test_the_script_ends_with_the_status_of_a_mistake(llamas: Path) -> None:
    ended = launch(llamas, "--suite", "open-llm", "--efficiency")
    (line,) = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    assert ended.returncode == 2 and "give one of --suite or --tasks" in line and "Traceback" not in ended.stderr


def unwritable(name: str) -> Path:
    """A path of which a process of any user can write no file."""
    return Path("/proc/self") / name


@pytest.mark.parametrize("way", [["--efficiency"], ["--perplexity", "{text}"], ["--suite", "local", "--data_dir", "d"]])
def test_a_place_that_cannot_be_written_is_found_before_the_evaluation(
    way: list[str], llamas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "start_ranks", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(inference_cost, "protocol_of", lambda *_: pytest.fail("it began"))
    words = ["--model", str(llamas / "dense"), *(word.format(text=llamas / "text.txt") for word in way)]
    for place, text in (
        (tmp_path, "is a folder: give the name of a file"),
        (unwritable("figures.json"), "cannot be written: "),
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
    ):
        with pytest.raises(UserError) as caught:
            evaluate.evaluate(evaluate.parser().read([*words, "--json", str(place)]))
        assert str(caught.value).startswith(f"{str(place)!r} {text}") and "\n" not in str(caught.value)


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("{}", encoding="utf8")
    check_writable("", str(old), str(tmp_path / "new.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"] and old.read_text(encoding="utf8") == "{}"
