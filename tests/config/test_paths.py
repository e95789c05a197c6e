"""Paths that are too long for a file system: one line that names the option."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.paths import check_path, shortened
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import OPTIONS, PATHS

LONG = 300 * "x"


def test_a_long_value_is_shortened_in_the_middle() -> None:
    assert shortened("a.jsonl") == "a.jsonl"
    text = shortened(f"begin{LONG}end")
    assert len(text) < 210 and text.startswith("begin") and text.endswith("end") and " ... " in text


@pytest.mark.parametrize("path", [LONG, f"folder/{LONG}/file.json", 128 * "ü", 900 * "name/"])
def test_a_path_that_no_file_can_have_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"^--output '.*' is not a file or folder, .*: give a shorter name$") as caught:
        check_path("--output", path, "give a shorter name")
    assert path not in str(caught.value) or len(path) < 200


@pytest.mark.parametrize("path", ["", "a" * 255, f"{'a' * 200}/{'b' * 200}", "owner/name", "\udcff"])
def test_other_paths_are_taken(path: str) -> None:
    check_path("--output", path, "give a shorter name")


@pytest.mark.parametrize("name", PATHS)
def test_every_path_of_a_run_is_checked(name: str) -> None:
    words = {"deepspeed": "ds_configs/zero2.json", "model_name_or_path": "m", "data_path": "d"} | {name: LONG}
    with pytest.raises(UserError, match=f"^--{name} 'xx.* is not a file or folder"):
        resolve([word for flag, value in words.items() for word in (f"--{flag}", value)])
    assert type(OPTIONS[name].default) is str
