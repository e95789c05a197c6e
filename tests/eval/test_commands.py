"""The evaluation script: what it prints, and every mistake as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.eval.commands import launch


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
def test_a_mistake_is_one_line_and_status_2(words: list[str], line: str, llamas: Path) -> None:
    if "--suite" in words:
        pytest.importorskip("lm_eval")
    ended = launch(llamas, *words)
    told = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    assert (ended.returncode, len(told)) == (2, 1), ended.stderr
    assert line in told[0] and "Traceback" not in ended.stderr
