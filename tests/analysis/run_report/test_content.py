"""What a report knows of a run from its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from apt_ds.analysis.run_report.content import read
from apt_ds.config.errors import UserError
from tests.support.report_content import AFTER, BEFORE, RANKS, finished, interrupted, save


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    content = read(save(finished(tmp_path / "out")))
    assert content.summary == finished().summary and content.metrics == finished().metrics
    assert content.config == finished().config and content.command == "train.py --bf16"
    assert (content.last_step, content.total_steps, content.ranks) == (4, 4, RANKS)
    assert content.warnings == ["a scheduler is not used", "not finite"]


def test_an_interrupted_run_is_told_from_its_checkpoint_and_its_lines(tmp_path: Path) -> None:
    folder = save(interrupted(tmp_path / "out"))
    with (folder / "metrics.jsonl").open("a", encoding="utf8") as file:
        file.write('{"step": 5, "lo')
    content = read(folder)
    assert content.summary is None and content.command == "train.py --fp16"
    assert (content.last_step, content.total_steps, content.ranks) == (4, 8, RANKS)
    assert content.warnings == ["not finite", "1 lines of metrics.jsonl are not JSON and left out"]
    assert content.sizes_before() == BEFORE


def test_a_damaged_manifest_is_passed_over(tmp_path: Path) -> None:
    folder = save(interrupted(tmp_path / "out"))
    newer = folder / "checkpoint-9"
    newer.mkdir()
    (newer / "manifest.json").write_text("{", encoding="utf8")
    assert read(folder).manifest["step"] == 2


def test_total_steps_may_be_unknown() -> None:
    content = replace(interrupted(), manifest={})
    assert content.total_steps == 0 and replace(content, config={"max_steps": 7}).total_steps == 7


def test_sizes_appear_each_time_that_they_change() -> None:
    assert finished().size_history() == [("base", BEFORE), ("3", AFTER)]
    # a cut after the last step is in no line
    late = replace(finished(), metrics=finished().metrics[:2])
    assert late.size_history() == [("base", BEFORE), ("end", AFTER)]
    uncut = replace(interrupted(), metrics=interrupted().metrics[:2])
    assert uncut.size_history() == [("base", BEFORE)]


def test_a_summary_of_an_earlier_version_has_no_layers() -> None:
    summary = finished().summary
    assert summary is not None
    del summary["pruning"]["layers"], summary["pruning"]["ranks"], summary["environment"], summary["warnings"]
    content = replace(finished(), summary=summary, metrics=[])
    assert content.size_history() == [] and content.ranks == {} and content.command == "" and content.warnings == []


def test_other_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"is not the output folder of a run: config.yaml is missing"):
            read(folder)
    folder = save(finished(tmp_path / "out"))
    (folder / "summary.json").write_text("{", encoding="utf8")
    with pytest.raises(UserError, match="a file of the run cannot be read"):
        read(folder)
