"""What the start of a run costs: the rows that are measured, and the figures of one start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apt_ds.analysis.bench import data_start
from apt_ds.config.errors import UserError
from apt_ds.data.conversations import load_examples
from tests.support.launcher import Place, own_world


def test_every_row_has_a_number_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    data_start.write_rows("builtin:instructions", path, 2500)
    examples = load_examples(path)
    assert len(examples) == len({example.instruction for example in examples}) == 2500
    chat = tmp_path / "chat.json"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat.write_text(json.dumps([{"messages": turns}]), "utf-8")
    with pytest.raises(UserError, match="no instruction records"):
        data_start.write_rows(str(chat), path, 3)


def test_a_start_is_measured(place: Place, tmp_path: Path) -> None:
    with own_world():
        figures = data_start.start(place.words(tmp_path / "out"))
    assert figures["rows"] == len(load_examples(place.folder / "data.json"))
    assert 0 < figures["seconds"] < 60 and figures["cpu"] > 0
    table = data_start.render({"few": figures, "first": figures | {"rows": 52_000.0, "seconds": 4.0}})
    assert "| first start | 52,000 | 4.00 | 13,000 |" in table and "processors, load" in table
    assert not (tmp_path / "out").exists()
