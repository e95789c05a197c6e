"""Parts of a text file by the slice notation of `datasets`."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ReadInstruction

from apt_ds.config.errors import UserError
from apt_ds.data.text_slices import TextPart, short_names, text_part

SLICES = ["[50%:]", "[:50%]", "[10%:35%]", "[-20%:]", "[:-1]", "[2:5]", "[:]", "[-3:]", "[:99]", "[0%:100%]", "[:-40%]"]


@pytest.mark.parametrize("count", [1, 7, 11, 118])
def test_lines_are_the_rows_that_datasets_takes(tmp_path: Path, count: int) -> None:
    path, lines = tmp_path / "a.txt", [f"line {i}\n" for i in range(count)]
    path.write_text("".join(lines), encoding="utf8")
    for text in SLICES:
        (rows,) = ReadInstruction.from_spec(f"train{text}").to_absolute({"train": count})
        expected = "".join(lines[rows.from_ : rows.to])
        part = text_part(f"{path}{text}", "--flag")
        assert part.path == path
        if expected:
            assert part.read("--flag") == expected, text
        else:
            with pytest.raises(UserError, match=r"^--flag: \[.*has no line, as the file has \d+ lines"):
                part.read("--flag")


def test_halves_are_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    # other line ends become newlines, the last line has none, and what `splitlines` cuts at is no line end
    path.write_bytes("one\r\ntwo\u2028two\rthree\n\nfive".encode())
    halves = [text_part(f"{path}{text}").read("--flag") for text in ("[:50%]", "[50%:]")]
    assert halves == ["one\ntwo\u2028two\n", "three\n\nfive"]
    assert "".join(halves) == text_part(str(path)).read("--flag") == "".join(text_part(f"{path}[0:]").pieces("--flag"))


def test_an_existing_file_keeps_its_brackets(tmp_path: Path) -> None:
    path = tmp_path / "a.txt[1:]"
    path.write_text("x", encoding="utf8")
    assert text_part(str(path)) == TextPart(path) and text_part(str(path)).whole
    assert text_part(f"{path}[:1]") == TextPart(path, "", "1")
    assert text_part("plain[1]") == TextPart(Path("plain[1]"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[a:]", "'a' is not allowed in a slice: give START:END"), ("[:120%]", "a slice has at most 100 per cent")],
)
def test_another_form_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=rf"^--flag 'a.txt.*{problem}"):
        text_part(f"a.txt{text}", "--flag")


def test_short_names_tell_texts_apart() -> None:
    assert short_names(["/home/one/a.txt", "b.txt[50%:]"]) == ["a.txt", "b.txt[50%:]"]
    assert short_names(["x/a.txt", "y/a.txt", "b.txt"]) == ["x/a.txt", "y/a.txt", "b.txt"]
    assert short_names(["a.txt[:50%]", "a.txt[50%:]"]) == ["a.txt[:50%]", "a.txt[50%:]"]
