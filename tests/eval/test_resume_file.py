"""The resume file: it keeps answers, and belongs to one evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.eval.resume_file import ResumeFile

KEY = {"model": "m", "num_shots": 5}


def test_answers_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    first = ResumeFile(path, KEY)
    assert first.find("anatomy") is None
    first.add("anatomy", [1, 2])
    again = ResumeFile(path, KEY)
    assert again.find("anatomy") == [1, 2] and again.find("virology") is None
    again.remove()
    assert not path.exists()
    again.remove()


@pytest.mark.parametrize(
    ("key", "names"),
    [({"model": "m", "num_shots": 4}, "num_shots"), ({"model": "m"}, "num_shots"), (KEY | {"seed": 1}, "seed")],
)
def test_another_evaluation_is_refused(key: dict[str, object], names: str, tmp_path: Path) -> None:
    ResumeFile(tmp_path / "answers", KEY)
    with pytest.raises(UserError, match=rf"differs in {names}\. Delete it to start again"):
        ResumeFile(tmp_path / "answers", key)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"key": KEY})])
def test_a_broken_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "answers").write_text(content, encoding="utf8")
    with pytest.raises(UserError, match="cannot be read"):
        ResumeFile(tmp_path / "answers", KEY)
