"""Large data sets in a cache: the same rows as in memory, made once, and made again where the cache is of no use."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import shutil
import sys
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import cache, prepared
from apt_ds.data.cache import CacheSettings
from apt_ds.data.conversations import Example, example_source
from apt_ds.data.instructions import build_dataset, instruction_recipe
from apt_ds.data.prepared import Prepared, prepare
from apt_ds.data.recipe import Recipe
from tests.data.test_templates import DATED
from tests.support import golden_rows

ROWS = 120


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows count as many."""
    monkeypatch.setattr(prepared, "SMALL", 50)
    monkeypatch.setattr(prepared, "SMALL_BYTES", 1000)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of every layout, one of them with an empty answer, and one too long for its answer."""
    folder = tmp_path_factory.mktemp("data")
    lines = Path(golden_rows.conversations(folder, "chat")).read_text("utf-8").splitlines()[:ROWS]
    long = {"instruction": "cat " * 400, "output": "too far", "note": "unused"}
    path = folder / "many.jsonl"
    path.write_text("\n".join([*lines, json.dumps(long), json.dumps({**long, "output": " "})]), "utf-8")
    return path


def recipe(name: str = "chatml", length: int = 160, now: datetime | None = None) -> Recipe[Example]:
    """How the tests' conversations become rows."""
    return instruction_recipe(golden_rows.TOKENIZERS[name](), length, now)


def rows_in(path: Path, root: Path, given: Recipe[Example] | None = None, **options: object) -> Prepared[Example]:
    """The data set, prepared in the cache `root`."""
    return prepare(example_source(path), given or recipe(), CacheSettings(str(root), **options))  # type: ignore[arg-type]


def refused(_: object) -> None:
    pytest.fail("it was tokenized again")


@pytest.fixture(scope="module")
def root(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the data set, made by two processes."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "SMALL", 50)
        patch.setattr(prepared, "SMALL_BYTES", 1000)
        rows_in(data, folder, processes=2)
    return folder


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A copy of that cache."""
    return Path(shutil.copytree(root, tmp_path / "cache"))


def entry(root: Path) -> Path:
    """The only folder in a cache."""
    (folder,) = root.iterdir()
    return folder


def test_a_cached_set_is_what_it_is_in_memory(data: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(entry(root).glob("rows*.arrow"))) == 2
    cached = rows_in(data, root)
    monkeypatch.setattr(prepared, "SMALL_BYTES", 1 << 20)
    plain = rows_in(data, root)
    assert cached.folder is not None and plain.folder is None
    assert list(cached.examples) == list(plain.examples)
    assert [one.where for one in cached.examples] == [one.where for one in plain.examples]
    assert cached.examples[-1].where == f"{data}, line {ROWS + 1}" and cached.trained.tolist() == plain.trained.tolist()
    for numbers in (None, np.arange(0, ROWS + 1, 3), np.arange(ROWS + 1)):
        one, other = cached.tokenized(numbers), plain.tokenized(numbers)
        assert one == other and one.rows == other.rows and one.lengths.tolist() == other.lengths.tolist()
    whole = build_dataset(list(plain.examples), golden_rows.TOKENIZERS["chatml"](), 160)
    assert whole == cached.tokenized() and whole.dropped == 1 and len(whole) == ROWS


def test_the_rows_lie_in_mapped_files(data: Path, root: Path) -> None:
    token_set = rows_in(data, root).tokenized()
    assert all(not values.flags.owndata for column in token_set.columns.values() for _, values in column.chunks)
    assert "rows_0" in Path("/proc/self/maps").read_text("utf-8")


def test_later_starts_neither_parse_nor_tokenize(
    data: Path, own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = rows_in(data, own).tokenized()
    monkeypatch.setattr(prepared, "write_rows", refused)
    monkeypatch.setattr(prepared, "write_examples", refused)
    monkeypatch.setattr(prepared, "fingerprint_of", refused)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert rows_in(data, own).tokenized() == first
    # what the first start warned of is still so
    assert "left out 1 records" in caplog.text and "not used: 'note'" in caplog.text
    moved = Path(shutil.copy(data, own.parent / "moved.jsonl"))
    assert rows_in(moved, own).examples[0].where == f"{moved}, line 1"


@pytest.mark.parametrize("change", ["data", "length", "template", "special token", "code"])
def test_another_set_has_a_folder_of_its_own(
    change: str, data: Path, own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer, length, path = golden_rows.TOKENIZERS["chatml"](), 160, data
    if change == "data":
        path = tmp_path / "other.jsonl"
        path.write_text(data.read_text("utf-8").replace("cat", "dog", 1), "utf-8")
    elif change == "length":
        length = 161
    elif change == "template":
        tokenizer.chat_template += " "
    elif change == "special token":
        tokenizer.eos_token = "</s>"
    else:
        monkeypatch.setattr(cache, "_code", lambda: "other")
    rows_in(path, own, instruction_recipe(tokenizer, length))
    assert len(list(own.iterdir())) == 2


def test_the_time_counts_as_a_template_writes_it() -> None:
    tokenizer = golden_rows.TOKENIZERS["llama3"]()
    morning, evening, later = datetime(2024, 5, 6, 7), datetime(2024, 5, 6, 19), datetime(2024, 5, 7)
    times = [instruction_recipe(tokenizer, 9, now).options["times"] for now in (morning, evening, later)]
    assert times == [["06 May 2024"], ["06 May 2024"], ["07 May 2024"]]
    tokenizer.chat_template = DATED
    times = [instruction_recipe(tokenizer, 9, now).options["times"] for now in (morning, evening)]
    assert times[0] != times[1]
    tokenizer.chat_template = DATED.replace("'%d %b %Y %H:%M:%S'", "form")
    assert instruction_recipe(tokenizer, 9, morning).options["times"] == [str(morning)]
    assert recipe("chatml", 9, morning).options["times"] == []


def test_overwriting_makes_the_set_again(data: Path, own: Path) -> None:
    before = entry(own).stat().st_ino
    again = rows_in(data, own, overwrite=True)
    assert entry(own).stat().st_ino != before and len(again.tokenized()) == ROWS


DAMAGES = ["bytes", "cut", "gone", "meta", "npy"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_again(damage: str, data: Path, own: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = rows_in(data, own).tokenized()
    name = {"meta": "meta.json", "npy": "trained.npy"}.get(damage, "rows_00001_of_00002.arrow")
    file = entry(own) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"cut": content[: len(content) // 2], "meta": b"[]"}.get(damage, bytes(content)))
    if damage == "gone":
        file.unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = rows_in(data, own)
    warning = next(record.getMessage() for record in caplog.records if "damaged" in record.getMessage())
    assert str(own) in warning and "made again" in warning and "\n" not in warning
    assert again.tokenized() == expected and rows_in(data, own).tokenized() == expected


def test_a_cache_that_cannot_be_written_is_one_warning(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder", "utf-8")
    with caplog.at_level(logging.WARNING):
        temporary = rows_in(data, tmp_path / "file" / "cache")
    (warning,) = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert "--data_cache_dir" in warning and str(tmp_path / "file") in warning
    assert temporary.temporary and temporary.folder is not None and temporary.folder.is_dir()
    temporary.remove_temporary()
    assert not temporary.folder.exists()
    # the mapped files can still be read
    assert len(temporary.tokenized().rows) == ROWS and temporary.examples[0].where == f"{data}, line 1"


def in_a_full_disk(data: Path, root: Path, sender: Connection) -> None:
    """Prepare the data set where no file may grow large. Sends what the error says."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        rows_in(data, root, processes=1)
    except UserError as error:
        sender.send(str(error))


def test_a_full_disk_is_one_line_and_leaves_nothing(data: Path, root: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=in_a_full_disk, args=(data, tmp_path / "cache", sender))
    child.start()
    assert receiver.poll(60)
    message = receiver.recv()
    child.join(60)
    assert message.startswith("the disk is full") and "--data_cache_dir" in message and str(tmp_path) in message
    assert "\n" not in message and list((tmp_path / "cache").iterdir()) == []


def test_small_sets_use_no_cache(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SMALL", 1000)
    small = rows_in(data, tmp_path / "cache")
    assert small.folder is None and not (tmp_path / "cache").exists() and len(small.tokenized()) == ROWS


@pytest.mark.parametrize("small", [True, False])
def test_a_set_travels_to_other_processes(small: bool, data: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SMALL_BYTES", 1 << 20 if small else 1000)
    given = recipe()
    prepared_set = rows_in(data, root, given)
    arrived = Prepared.from_bytes(prepared_set.to_bytes(given), given)
    assert list(arrived.examples) == list(prepared_set.examples) and arrived.tokenized() == prepared_set.tokenized()
    assert arrived.examples[3].where == prepared_set.examples[3].where and (prepared_set.folder is None) == small


def test_a_broken_record_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(data.read_text("utf-8") + '\n{"instruction": "x"}', "utf-8")
    with pytest.raises(UserError, match=rf"broken\.jsonl, line {ROWS + 3}: no column 'output'"):
        rows_in(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_an_error_of_a_worker_is_the_users(data: Path, tmp_path: Path) -> None:
    tokenizer = golden_rows.TOKENIZERS["chatml"]()
    tokenizer.chat_template += "{{ raise_exception('too long') if messages | length > 7 }}"
    with pytest.raises(UserError, match=r"many\.jsonl, line \d+: the chat template refuses"):
        rows_in(data, tmp_path / "cache", instruction_recipe(tokenizer, 160), processes=2)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_process_without_stderr_tokenizes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert len(rows_in(data, tmp_path / "cache").tokenized()) > 0


@pytest.mark.parametrize("choice", ["true", None])
def test_several_processes_leave_the_environment(
    choice: str | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` would leave a copy: what an earlier import holds and what the run sets later would differ."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if choice is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", choice)
    environment, values = os.environ, dict(os.environ)
    rows_in(data, tmp_path / "cache", processes=2)
    assert os.environ is environment and dict(os.environ) == values


def test_few_rows_have_few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [prepared.default_processes(rows) for rows in (10, 99, 100, 10**6)] == [1, 1, 2, 8]
