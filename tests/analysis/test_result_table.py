"""The table of a comparison: its files, and its place in a document."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from apt_ds.analysis import result_table
from apt_ds.analysis.result_table import columns, drawable, markdown, publish, write_section
from apt_ds.config.errors import UserError


def test_a_picture_has_the_points_that_are_whole(tmp_path: Path) -> None:
    rows = [
        {"method": "lora", "removed": 0.0, "inference_speed": 1.0, "perplexity": 10.0, "inference_memory": None},
        {"method": "apt", "removed": 0.3, "inference_speed": 1.2, "perplexity": None, "inference_memory": 0.8},
        {"method": "apt", "removed": 0.5, "inference_speed": 1.4, "perplexity": float("inf"), "inference_memory": 0.8},
    ]
    assert [drawable(row) for row in rows] == [True, False, False]
    pytest.importorskip("matplotlib")
    publish(rows, tmp_path)
    assert (tmp_path / "table.png").stat().st_size > 1000
    (tmp_path / "table.png").unlink()
    publish(rows[1:], tmp_path)
    assert not (tmp_path / "table.png").exists()


def test_a_table_is_written_into_its_place_in_a_document(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("one\n<!-- sst2 -->\nold\n<!-- end -->\ntwo\n<!-- rte -->\n<!-- end -->\n", encoding="utf8")
    for _ in range(2):
        write_section(document, "rte", "| \\1 |\n")
    text = document.read_text(encoding="utf8")
    assert text == "one\n<!-- sst2 -->\nold\n<!-- end -->\ntwo\n<!-- rte -->\n| \\1 |\n<!-- end -->\n"
    with pytest.raises(UserError, match=r"--section 'mnli': .* has 0 places for it; give it one"):
        write_section(document, "mnli", "")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        write_section(tmp_path / "b.md", "mnli", "")


def test_rows_with_different_seeds_say_how_many() -> None:
    rows = [{"method": "apt", "removed": 0.3, "seeds": 3, "perplexity": 45.0}]
    assert "seeds" not in columns(rows)
    rows.append({"method": "flap", "removed": 0.3, "seeds": 1, "perplexity": 90.0})
    assert markdown(rows).splitlines()[:4:3] == [
        "| method | parameters removed, % | seeds | perplexity |",
        "| flap | 30.0 | 1 | 90.0 |",
    ]


def test_a_finished_table_is_printed_again_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"method": "full", "removed": 0.0, "dev_score": 80.0, "metric": "accuracy", "reference": "full"}]
    (tmp_path / "table.json").write_text(json.dumps(rows), encoding="utf8")
    document = tmp_path / "a.md"
    document.write_text("<!-- rte -->\n<!-- end -->\n", encoding="utf8")
    words = ["results", "--folder", str(tmp_path), "--into", str(document), "--section", "rte"]
    monkeypatch.setattr(sys, "argv", words)
    result_table.main()
    assert "| full | 0.0 | 80.0 |" in document.read_text(encoding="utf8") and "| 80.0 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", words[:-2])
    with pytest.raises(UserError, match="--into and --section require each other"):
        result_table.main()
    (tmp_path / "table.json").unlink()
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(UserError, match=r"table.json cannot be read: .* give the output folder of a finished compare"):
        result_table.main()


def test_columns_are_those_that_some_row_fills() -> None:
    rows = [
        {"method": "lora", "removed": 0.0, "perplexity": 10.0, "reference": "lora", "inference_bytes": 5e6},
        {"method": "apt", "removed": 0.3, "perplexity": None, "reference": "lora", "perplexity_std": 1.0},
    ]
    assert [*columns(rows)] == ["method", "removed", "perplexity"]
    assert markdown(rows).splitlines()[2:] == ["| lora | 0.0 | 10.0 |", "| apt | 30.0 | - |"]
    alone = [{name: value for name, value in row.items() if name != "reference"} for row in rows]
    assert [*columns(alone)][-1] == "inference_bytes" and markdown(alone).splitlines()[2].endswith("| 5 |")
