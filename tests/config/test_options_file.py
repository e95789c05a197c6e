"""The file of `--config`: repeated keys, numbers, nesting, encodings, and text that no path can hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from apt_ds.config.errors import UserError
from apt_ds.config.option_types import converted
from apt_ds.config.options_file import read_options
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import OPTIONS, RunConfig
from tests.support.paths import ROOT

TEXTS = [name for name, spec in OPTIONS.items() if type(spec.default) is str]


def written(folder: Path, content: str | bytes, name: str = "run.yaml") -> str:
    """The path of a file with this content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def refused(path: str) -> str:
    """The one line with which a file is refused, without its folder."""
    with pytest.raises(UserError) as caught:
        read_options(path)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{Path(path).parent}/", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.yaml", "rank: 1\nrank: 2\n"),
        ("run.yml", "rank: 1\n'rank': 1\n"),
        ("run.yaml", "{rank: 1, rank: 2}"),
        ("run.yaml", "seed: {rank: 1, rank: 2}"),
        ("run.json", '{"rank": 1, "rank": 2}'),
        ("run.json", '{"seed": {"rank": 1, "rank": 2}}'),
    ],
)
def test_a_key_twice_is_refused(name: str, content: str, tmp_path: Path) -> None:
    text = refused(written(tmp_path, content, name))
    assert text == f"{name}: an object has 'rank' more than once. Remove all but one"


def test_a_merged_key_may_be_stated_again(tmp_path: Path) -> None:
    assert read_options(written(tmp_path, "<<: {rank: 3, seed: 4}\nrank: 5\n")) == {"rank": 5, "seed": 4}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[
            ("max_steps", text)
            for text in ("1:30", "010", "-010", "0128", "0x10", "0b11", "0o17", "1_000", "2026-11-27")
        ],
        *[("learning_rate", text) for text in ("1_0", "1_0.5", "1:30.5", "0x1p3", "010", "1e1_0", "1,5")],
    ],
)
def test_a_number_in_another_form_is_refused(name: str, text: str, tmp_path: Path) -> None:
    wanted = f"{name} '{text}' is not allowed: give a plain decimal number, such as 10 or 1e-4"
    for content in (f"{name}: {text}", f"{name}: '{text}'", f"{name}: !!int {text}", f"{name}: !!float {text}"):
        assert refused(written(tmp_path, content)) == f"run.yaml: {wanted}"
    assert refused(written(tmp_path, json.dumps({name: text}), "run.json")) == f"run.json: {wanted}"


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0.0), ("10", 10.0), ("+5", 5.0), (".5", 0.5), ("5.", 5.0), ("1e-4", 1e-4), ("1E4", 1e4), ("1.5e+3", 1500.0)],
)
def test_plain_decimal_forms_are_read(text: str, value: float, tmp_path: Path) -> None:
    for content in (f"learning_rate: {text}", f"learning_rate: '{text}'", f"learning_rate: !!float {text}"):
        assert read_options(written(tmp_path, content)) == {"learning_rate": value}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("max_steps: ten", "max_steps 'ten' is not allowed: give a whole number"),
        ("max_steps: ''", "max_steps '' is not allowed: give a whole number"),
        ("max_steps: 1e3", "max_steps '1e3' is not allowed: give a whole number"),
        ("max_steps: 2.0", "max_steps 2.0 is not allowed: give a whole number"),
        ("max_steps: ١٢", "max_steps '١٢' is not allowed: give a whole number"),
        ("run_name: 10", "run_name 10 is not allowed: give text"),
    ],
)
def test_what_is_no_number_is_refused_as_before(content: str, problem: str, tmp_path: Path) -> None:
    assert refused(written(tmp_path, content)) == f"run.yaml: {problem}"


@pytest.mark.parametrize("text", ["010", "1:30", "1_0", "2026-11-27", "0x10", "1e5", "v1"])
def test_text_that_looks_like_a_number_is_text(text: str, tmp_path: Path) -> None:
    assert read_options(written(tmp_path, f"run_name: {text}")) == {"run_name": text}
    run = RunConfig(run_name=text, learning_rate=1e-8, seed=2**62)
    run.save(tmp_path / "config.yaml")
    assert read_options(str(tmp_path / "config.yaml")) == yaml.safe_load(run.to_yaml()) == run.flags()


@pytest.mark.parametrize("flag", ["learning_rate", "max_steps", "sparsity", "seed"])
@pytest.mark.parametrize("text", ["1_0", "1_0.5", "٣"])
def test_digits_that_only_python_takes_are_refused(flag: str, text: str) -> None:
    with pytest.raises(UserError, match=f"^--{flag} '{text}' is not allowed: give a (whole )?number"):
        resolve([f"--{flag}", text])
    with pytest.raises(UserError, match=f"^--{flag} '{text}' is not allowed"):
        RunConfig(**{flag: text})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.yaml", 5000 * "["),
        ("run.yaml", 5000 * "{a: "),
        ("run.yaml", 5000 * "- "),
        ("run.json", 200_000 * "["),
        ("run.json", 200_000 * '{"a":'),
    ],
)
def test_deep_nesting_is_one_line(name: str, content: str, tmp_path: Path) -> None:
    wanted = f"--config '{name}' cannot be read: it is nested too deeply. Give lines of the form name: value"
    assert refused(written(tmp_path, content, name)) == wanted


@pytest.mark.parametrize(
    "content",
    [
        "? [a]\n: 3",
        "[]: 3",
        "? {a: 1}\n: 3",
        "rank: =",
        "rank: !!python/object:x 3",
        "bf16: !!bool foo",
        "max_steps: !!timestamp foo",
    ],
)
def test_unusual_yaml_is_one_line(content: str, tmp_path: Path) -> None:
    assert refused(written(tmp_path, content)).startswith("--config 'run.yaml' cannot be read: ")


def test_a_byte_order_mark_is_no_part_of_the_content(tmp_path: Path) -> None:
    for name, content in (("run.yaml", "rank: 4"), ("run.json", '{"rank": 4}')):
        assert read_options(written(tmp_path, content.encode("utf-8-sig"), name)) == {"rank": 4}
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
            path = written(tmp_path, content.encode(encoding), name)
            assert refused(path) == f"{name}: the file is not text in UTF-8. Save it as UTF-8"
    assert "Save it as UTF-8" in refused(written(tmp_path, b"run_name: \xe4"))
    assert "has no options" in refused(written(tmp_path, b"\xef\xbb\xbf"))


def test_a_value_that_was_not_given_is_not_quoted() -> None:
    with pytest.raises(UserError, match=r"^--config '' is not allowed: give a \.yaml, \.yml or \.json file$"):
        resolve(["--config", ""])


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("text", "advice"), [("a\0b", "text without NUL"), ("\ud800", "text that is valid in UTF-8")])
def test_text_that_no_path_can_hold_is_refused(name: str, text: str, advice: str, tmp_path: Path) -> None:
    problem = f"{text!r} is not allowed: give {advice}"
    assert refused(written(tmp_path, json.dumps({name: text}), "run.json")) == f"run.json: {name} {problem}"
    yaml_text = yaml.safe_dump({name: text})
    assert refused(written(tmp_path, yaml_text)) == f"run.yaml: {name} {problem}"
    with pytest.raises(UserError) as caught:
        RunConfig(**{name: text})
    assert str(caught.value) == f"--{name} {problem}"
    with pytest.raises(UserError, match="is not allowed"):
        converted("here", OPTIONS[name], Path(text))


def test_other_text_is_taken(tmp_path: Path) -> None:
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--model_name_or_path", "m", "--data_path", "d"]
    assert resolve([*words, "--run_name", "Größe 🙂\n"]).output.run_name == "Größe 🙂\n"
