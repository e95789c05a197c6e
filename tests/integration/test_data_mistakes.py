"""Whole runs on data that is wrong, too long, too short, or dated by its chat template."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.data.splitting import held_out_numbers
from apt_ds.data.tokenizer_checks import check_lengths
from apt_ds.models import loading
from apt_ds.training import checkpoint, datasets
from apt_ds.training import run as training_run
from tests.support import multiprocess, tiny
from tests.support.launcher import Place, Run

# the tiny tokenizer has a word for each of w100 to w159
DATED = (
    "{{ strftime_now('w1%S') }} {% for m in messages %}{{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %} {% endif %}"
)
ROW = {"instruction": "the cat", "input": "", "output": "sees"}
CALLING = {
    "messages": [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "tool_calls": [{"name": "see", "arguments": {}}]},
        {"role": "tool", "content": "sees"},
        {"role": "assistant", "content": "sees"},
    ]
}


MISTAKES: dict[str, tuple[object, list[str], list[str]]] = {
    "one record": ([ROW], [], ["--eval_size", "only one example", "--eval_data_path"]),
    "calls without a template": ([ROW] * 9 + [CALLING], [], ["d.json, record 10", "no chat template", "'tool_calls'"]),
    "too many tokens": (
        [ROW] * 9 + [ROW | {"output": "cat " * 300}],
        ["--max_seq_length", "200", "--eval_size", "1"],
        ["has 200 tokens", "128 positions", "Give --max_seq_length 128"],
    ),
    "a key twice": (
        '[{"instruction":"a","output":"b","output":"c"}]',
        [],
        ["d.json, record 1", "'output' occurs twice"],
    ),
    "pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", [], ["d.json", "git lfs pull"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_written(name: str, place: Place, tmp_path: Path, run: Run) -> None:
    content, flags, parts = MISTAKES[name]
    ended = run(place.words(tmp_path / "out", "--data_path", place.spoiled("d.json", content), *flags))
    assert ended.status == 2 and len(ended.mistakes) == 1 and "Traceback" not in ended.err
    assert [part for part in parts if part not in ended.mistakes[0]] == [], ended.mistakes
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("long", "warned"), [(30, True), (0, False)])
def test_examples_without_a_trained_token_are_dropped_with_a_warning(
    long: int, warned: bool, place: Place, tmp_path: Path, run: Run
) -> None:
    rows = [ROW | {"instruction": "the cat " * 60} if i < long else ROW for i in range(40)]
    held_out = ["--eval_data_path", place.spoiled("e.json", [ROW] * 4)]
    data = ["--data_path", place.spoiled("d.json", rows), "--max_seq_length", "64", "--max_steps", "1", *held_out]
    ended = run(place.words(tmp_path / "out", *data))
    assert ended.status == 0, ended.err
    text = "30 of 40 training examples are left out: none of their first 64 tokens is trained (--max_seq_length)"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf8"))
    assert (text in ended.err, text in summary["warnings"], summary["data"]["dropped"]) == (warned, warned, long)


@pytest.mark.parametrize(("long", "warned"), [(3, True), (0, False)])
@pytest.mark.parametrize("way", ["--eval_data_path", "--streaming", "--eval_size"])
def test_evaluation_examples_without_a_trained_token_are_dropped_with_a_warning(
    way: str, long: int, warned: bool, place: Place, tmp_path: Path, run: Run
) -> None:
    longer = ROW | {"instruction": "the cat " * 60}
    held_out = [longer] * long + [ROW] * (10 - long)
    data = ["--data_path", place.spoiled("d.json", [ROW] * 20), "--eval_size", "0"]
    data += ["--eval_data_path", place.spoiled("e.json", held_out)]
    if way == "--streaming":
        data += ["--streaming", "true"]
    if way == "--eval_size":
        # a random half of the rows is held out
        rows = [longer if long else ROW, ROW] * 10
        data = ["--data_path", place.spoiled("d.json", rows), "--eval_size", "10"]
    ended = run(place.words(tmp_path / "out", *data, "--max_seq_length", "64", "--max_steps", "1"))
    assert ended.status == 0, ended.err
    text = (
        r"(\d+) of 10 evaluation examples are left out: none of their first 64 tokens is trained \(--max_seq_length\)"
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf8"))
    matches = [re.fullmatch(text, warning) for warning in summary["warnings"] if "evaluation examples" in warning]
    assert [bool(one) for one in matches] == [True] * warned and ("evaluation examples are left" in ended.err) == warned
    count = int(matches[0][1]) if matches and matches[0] else 0
    assert summary["data"]["held_out"] == 10 - count


def test_a_length_above_the_positions_is_accepted_where_no_example_is_that_long() -> None:
    config = tiny.config()
    check_lengths(config, 128, 0)
    with pytest.raises(UserError, match=r"example has 129 tokens.* 128 positions"):
        check_lengths(config, 129, 0)
    doubled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    check_lengths(tiny.config(rope_parameters=doubled), 256, 0)
    with pytest.raises(UserError, match="256 positions"):
        check_lengths(tiny.config(rope_parameters=doubled), 257, 0)
    check_lengths(tiny.small("t5").config, 100_000, 0)


def test_one_record_trains_where_other_records_are_evaluated(place: Place, tmp_path: Path, alone: None) -> None:
    alone_file = place.spoiled("one.json", [ROW])
    words = place.words(tmp_path, "--data_path", alone_file, "--eval_data_path", str(place.folder / "data.json"))
    run = resolve(words)
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    assert len(data.train) == 1 and len(data.held_out) == 4
    assert data.order.indices(3) == [0, 0]
    with pytest.raises(UserError, match="only one example"):
        held_out_numbers(1, 1, 0)


@pytest.fixture(scope="module")
def dated(place: Place) -> Path:
    """The tiny model with a template that writes the second of the minute."""
    folder = place.folder / "dated"
    shutil.copytree(place.folder / "model", folder)
    (folder / "chat_template.jinja").write_text(DATED, "utf-8")
    return folder


def at(second: int) -> type[datetime]:
    """A clock that always shows the same second of a minute."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2024, 5, 6, 7, 8, second)

    return Clock


def test_a_run_resumed_on_the_next_day_keeps_its_date(
    place: Place, dated: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--model_name_or_path", str(dated), "--max_steps", "4", "--pruning", "none", "--save_steps", "2"]
    monkeypatch.setattr(datasets, "datetime", at(11))
    first = run(place.words(tmp_path / "out", *flags))
    assert first.status == 0, first.err
    saved = tmp_path / "out" / "checkpoint-2"
    assert checkpoint.load(saved).started == datetime(2024, 5, 6, 7, 8, 11)

    monkeypatch.setattr(datasets, "datetime", at(47))
    words = place.words(tmp_path / "on", *flags, "--resume_from_checkpoint", str(saved))
    trainer = training_run.prepare(resolve(words))
    tok = trainer.base.tokenizer
    for rows in (trainer.data.train.rows, trainer.data.held_out.rows):
        assert {tok.decode(row["input_ids"][:1]) for row in rows} == {"w111"}
    trainer.train_loop()
    trainer.metrics_logger.close()
    # what goes on is saved with the same time again
    assert checkpoint.load(tmp_path / "on" / "checkpoint-4").started == datetime(2024, 5, 6, 7, 8, 11)
    losses = [(tmp_path / name / "metrics.jsonl").read_text("utf-8").splitlines() for name in ("out", "on")]
    assert [json.loads(row)["loss"] for row in losses[0]] == [json.loads(row)["loss"] for row in losses[1]]


def test_samples_of_the_report_have_the_date_of_the_run(
    place: Place, dated: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apt_ds.training import plain_models

    asked: list[int] = []
    original = plain_models.answer

    def watched(model: Any, base: Any, prompt: list[int]) -> str:
        asked.append(prompt[0])
        return original(model, base, prompt)

    monkeypatch.setattr(plain_models, "answer", watched)
    monkeypatch.setattr(datasets, "datetime", at(33))
    words = place.words(tmp_path / "out", "--model_name_or_path", str(dated), "--max_steps", "1", "--pruning", "none")
    assert run(words).status == 0
    word = loading.find_base(str(dated)).tokenizer.convert_tokens_to_ids("w133")
    assert asked and set(asked) == {word}


@pytest.mark.dist
def test_ranks_with_other_clocks_have_the_same_tokens(place: Place, dated: Path) -> None:
    arguments = {"folder": str(place.folder), "model": str(dated), "seconds": [5, 58]}
    tokens = multiprocess.run(2, "data_jobs.clocks", arguments)
    assert tokens == [["w105"], ["w105"]]
