"""The suite `local`: its figures, its table, and its command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import apt_ds
from apt_ds.config.errors import UserError
from apt_ds.data.choice_questions import Question, Task
from apt_ds.eval import loading, local_suite
from apt_ds.eval.local_suite import is_right, render, wilson_interval
from tests.support import tiny
from tests.support.local_tasks import write_folder


def test_intervals_are_those_of_wilson() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for correct, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_a_long_choice_is_no_worse_by_length() -> None:
    question = Question("", (" four", " fourteen of them"), 1)
    values = [-5.0, -9.0]
    assert not is_right(question, values, Task("a", (question,)))
    assert is_right(question, values, Task("a", (question,), by_length=True))


def test_figures_follow_from_the_models_probabilities(tmp_path: Path) -> None:
    """A model that always writes `cat` answers the questions whose answer that is."""
    tiny.save_model(tmp_path / "model")
    loaded = loading.load(str(tmp_path / "model"))
    cat = loaded.tokenizer("cat")["input_ids"][0]
    with torch.no_grad():
        # a constant through the residual stream: the last norm sees it in every position
        loaded.model.model.embed_tokens.weight[:, 0] = 1000.0
        loaded.model.model.norm.weight[0] = 1.0
        loaded.model.lm_head.weight[:, 0] = 0.0
        loaded.model.lm_head.weight[cat, 0] = 100.0
    words = Task("words", tuple(Question("the red", (f" {word}",)) for word in ("cat", "dog", "cat", "cat")))
    choices = Task("choices", tuple(Question("the red", (" dog", " cat"), answer) for answer in (1, 1, 0)))
    figures = local_suite.evaluate(loaded, [words, choices], 2)
    assert figures["words"]["accuracy"] == 0.75 and figures["words"]["chance"] == 0.75
    assert figures["words"]["log_likelihood"] < -10 and "log_likelihood" not in figures["choices"]
    assert figures["choices"]["accuracy"] == pytest.approx(2 / 3) and figures["choices"]["count"] == 3
    assert (figures["words"]["low"], figures["words"]["high"]) == wilson_interval(3, 4)
    mean = figures["mean"]
    half = 1.959964 * math.sqrt(0.75 * 0.25 / 4 + 2 / 9 / 3) / 2
    assert mean["accuracy"] == pytest.approx((0.75 + 2 / 3) / 2) and mean["count"] == 7
    assert (mean["low"], mean["high"]) == pytest.approx((mean["accuracy"] - half, min(1, mean["accuracy"] + half)))
    lines = render(figures).splitlines()
    assert lines[1].split()[:6] == ["words", "75.0%", "30.1", "to", "95.4", "%"] and lines[1].split()[6] == "75.0%"


def test_the_command_asks_the_same_questions_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save_model(tmp_path / "model", max_position_embeddings=512, vocab_size=232)
    # as two unknown words both answers would tie, up to rounding
    tokenizer = tiny.tokenizer()
    assert tokenizer.add_tokens(["positive", "negative"]) == 2
    tokenizer.save_pretrained(tmp_path / "model")
    data, out = write_folder(tmp_path / "data"), tmp_path / "local.json"
    options = {"suite": "local", "data_dir": str(data), "json": str(out)}
    # lm-evaluation-harness is not needed
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    first = apt_ds.evaluate(str(tmp_path / "model"), **options, limit=5)
    table = capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf8")) == first
    for name, row in first["tasks"].items():
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 and f"{100 * row['chance']:.1f}%" in table
        assert name == "mean" or row["count"] == 5
    again = apt_ds.evaluate(str(tmp_path / "model"), **options, limit=5, batch_size=3)
    assert again["questions"] == first["questions"]
    assert {n: r["accuracy"] for n, r in again["tasks"].items()} == {
        n: r["accuracy"] for n, r in first["tasks"].items()
    }
    for wrong, problem in (({"data_dir": ""}, "requires --data_dir"), ({"num_fewshot": 2}, "shots of its own")):
        with pytest.raises(UserError, match=f"--suite local .*{problem}"):
            apt_ds.evaluate(str(tmp_path / "model"), **(options | wrong))
