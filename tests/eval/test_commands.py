"""The evaluation script: what it prints, and every mistake as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apt_ds.commands import evaluate
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
    ended = script_caller(evaluate.main, capfd, monkeypatch)("--model", str(llamas / "dense"), *words)
    assert (ended.status, len(ended.mistakes)) == (2, 1), ended.err
    assert line in ended.mistakes[0] and "Traceback" not in ended.err


def test_the_script_ends_with_the_status_of_a_mistake(llamas: Path) -> None:
    ended = launch(llamas, "--suite", "open-llm", "--efficiency")
    (line,) = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    assert ended.returncode == 2 and "give one of --suite or --tasks" in line and "Traceback" not in ended.stderr
