"""Names and weights of sources, as an option states them."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.sources import WeightedSource as Named
from apt_ds.data.sources import apportion, parse_sources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jsonl", [Named("a.jsonl")]),
        ("a.jsonl:0.7,b.parquet:0.3", [Named("a.jsonl", 0.7), Named("b.parquet", 0.3)]),
        ("owner/set:config@main", [Named("owner/set:config@main")]),
        (
            "owner/set:config@main:3, b.txt:1e-1",
            [Named("owner/set:config@main", 3), Named("b.txt", 0.1)],
        ),
        ("owner/set:2023@main", [Named("owner/set:2023@main")]),
        ("builtin:instructions", [Named("builtin:instructions")]),
        (
            "builtin:instructions:2,wiki.txt:1",
            [Named("builtin:instructions", 2), Named("wiki.txt", 1)],
        ),
        ("a.json,b.json", [Named("a.json"), Named("b.json")]),
        ("c.txt[50%:]", [Named("c.txt[50%:]")]),
        ("c.txt[:50%]:0.5,c.txt[50%:]:2", [Named("c.txt[:50%]", 0.5), Named("c.txt[50%:]", 2)]),
    ],
)
def test_a_number_after_the_last_colon_is_a_weight(text: str, expected: list[Named]) -> None:
    assert parse_sources(text, "--data_path") == expected


def test_an_existing_file_keeps_its_commas_and_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.json", "c:2", "d"):
        Path(name).touch()
    assert parse_sources("a,b.json", "--data_path") == [Named("a,b.json")]
    assert parse_sources("c:2", "--data_path") == [Named("c:2")]
    assert parse_sources("a,b.json[1:]:2,d:1", "--data_path") == [Named("a,b.json[1:]", 2), Named("d", 1)]
    assert parse_sources("d:1,a,b.json:2,c:2:3", "--data_path") == [
        Named("d", 1),
        Named("a,b.json", 2),
        Named("c:2", 3),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a.json:0,b.json:1", "--data_path 'a.json:0,b.json:1': the weight of 'a.json' is 0. Give a number above 0"),
        ("a.json:-1,b.json:1", "weight of 'a.json' is -1"),
        ("a.json:1e999,b.json:1", "weight of 'a.json' is 1e999"),
        ("a.json:0.5,b.json", "'b.json' has no weight, other sources have one"),
        ("a.json:1,a.json:2", "'a.json' is named twice"),
        ("./x/../data:1,data:2", "'data' is named twice"),
        ("a.json:1,,b.json:1", "has an empty name"),
        ("a.json:1,:2", "has an empty name"),
    ],
)
def test_mistakes_are_one_line(text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    Path("data").touch()
    with pytest.raises(UserError) as caught:
        parse_sources(text, "--data_path")
    assert problem in str(caught.value) and "\n" not in str(caught.value)


LONG = 300 * "x"


@pytest.mark.parametrize(
    "text",
    [
        f"{LONG}.json",
        f"a.json:1,{LONG}.json:2",
        f"folder/{LONG}.txt[50%:]",
        f'[{{"instruction": "{LONG}", "output": "a"}}]',
        f'[{{"instruction": "a", "output": "{LONG}"}}]',
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_sources(text, "--data_path")
    message = str(caught.value)
    assert message.startswith("--data_path '") and " ... " in message and len(message) < 500, message
    assert "is not a file or folder" in message and "give a file, a folder or a hub name" in message


def test_an_address_and_many_short_names_may_be_long() -> None:
    address = f"https://host/{LONG}.jsonl"
    assert parse_sources(address, "--data_path") == [Named(address)]
    names = [f"file{number}.jsonl" for number in range(60)]
    assert parse_sources(",".join(names), "--data_path") == [Named(name) for name in names]


def test_a_total_is_divided_by_weights() -> None:
    assert apportion(100, [0.7, 0.3]) == [70, 30]
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(3, [0.9, 0.05, 0.05]) == [3, 0, 0]
    assert apportion(0, [1, 2]) == [0, 0]
