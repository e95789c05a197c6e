"""Runs with --streaming: what they read, held-out examples, mistakes, and connections that drop."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from apt_ds.config.resolve import resolve
from apt_ds.data import stream_part
from apt_ds.models import loading
from apt_ds.training import datasets
from apt_ds.training.checkpoint import find
from apt_ds.training.run_data import Data
from tests.support import tiny
from tests.support.file_server import Server, serving
from tests.support.launcher import PRETUNING, Place, Run
from tests.training.test_summary_schema import check

STREAMING = ["--streaming", "--shuffle_buffer_size", "8", "--eval_size", "4"]


@pytest.fixture(scope="module")
def sources(place: Place) -> dict[str, str]:
    """Paths by name: 48 records of instructions as a list and as lines, a text file, rows of text."""
    draw = random.Random(3)
    text = [" ".join(draw.choice(tiny.WORDS) for _ in range(draw.randint(20, 90))) for _ in range(40)]
    records = json.loads((place.folder / "data.json").read_text())
    more = [{"instruction": f"{records[n % 48]['instruction']} {n}", "output": "the cat sees"} for n in range(300)]
    return {
        "many": place.spoiled("many.jsonl", "\n".join(map(json.dumps, more))),
        "data": str(place.folder / "data.json"),
        "lines": place.spoiled("lines.jsonl", "\n".join(map(json.dumps, records))),
        "wiki": place.spoiled("wiki.txt", "\n".join(text * 8)),
        "rows": place.spoiled("rows.jsonl", "\n".join(json.dumps({"text": one}) for one in text[:20])),
    }


@pytest.fixture(scope="module")
def server(sources: dict[str, str]) -> Iterator[Server]:
    """Serves the files."""
    with serving(Path(sources["lines"]).parent) as server:
        yield server


def read(place: Place, *flags: str) -> Data:
    run = resolve(place.words(place.folder / "none", *STREAMING, *flags))
    return datasets.read_data(run, loading.find_base(run.model.model_name_or_path))


def test_a_run_over_a_mixture_says_what_it_saw(place: Place, sources: dict[str, str], tmp_path: Path, run: Run) -> None:
    flags = [
        "--data_path",
        f"{sources['lines']}:0.5,{sources['wiki']}:0.5",
        "--packing",
        "--dataloader_num_workers",
        "2",
    ]
    flags += ["--repair", "ls", "--allocate", "kl", "--allocate_evaluations", "20"]
    ended = run(place.words(tmp_path / "out", *PRETUNING, *STREAMING, *flags, "--max_steps", "3"))
    assert ended.status == 0, ended.err
    summary = check(tmp_path / "out")
    data = summary["data"]
    assert summary["pruning"]["allocation"]["tokens"] > 0
    assert (data["train"], data["held_out"], data["dropped"], data["steps"]) == (6, 4, 0, 3)
    assert [row["seen"] for row in data["sources"]] == [3, 3] and [row["rows"] for row in data["sources"]] == [0, 0]
    assert [row["seen"] for row in data["calibration"]] == [3, 3]


def test_the_first_examples_are_held_out(place: Place, sources: dict[str, str], alone: None) -> None:
    flags = ["--data_path", f"{sources['lines']}:0.75,{sources['rows']}:0.25", "--eval_size", "8"]
    data, records = read(place, *flags), [json.loads(line) for line in Path(sources["lines"]).read_text().splitlines()]
    assert len(data.held_out) == 8 and data.stream is not None and data.longest() == 64
    assert [one.output for one in data.held_out_examples] == [record["output"] for record in records[:6]]
    assert data.stream.starts[0].number == 6 and data.stream.starts[1].number > 0
    held_out = [data.held_out[i]["input_ids"] for i in range(8)]
    taken = [row["input_ids"].tolist() for row in data.stream.open().take(42 * 2)]
    assert not any(ids in held_out for ids in taken) and len({tuple(ids) for ids in taken}) == 42 + 21
    # the evaluation data may be another
    data = read(place, *flags, "--eval_data_path", sources["data"])
    assert len(data.held_out) == 8 and data.stream is not None and data.stream.starts[0].number == 0


def test_a_column_that_is_not_used_is_told_once(place: Place, alone: None, caplog: pytest.LogCaptureFixture) -> None:
    record = {"instruction": "the cat", "output": "sees", "more": 1}
    text = {"text": "the cat sees " * 8, "more": 1}
    data = read(place, "--data_path", place.spoiled("texts.jsonl", f"{json.dumps(text)}\n" * 99), "--eval_size", "2")
    assert data.stream is not None
    data.stream.open().take(30)
    assert len([message for message in caplog.messages if "not used: 'more'" in message]) == 1
    caplog.clear()
    data = read(place, "--data_path", place.spoiled("more.jsonl", f"{json.dumps(record)}\n" * 20))
    assert data.stream is not None
    data.stream.open().take(30)
    assert len([message for message in caplog.messages if "not used: 'more'" in message]) == 1


def test_the_fingerprint_covers_names_options_and_first_rows(
    place: Place, sources: dict[str, str], alone: None
) -> None:
    def fingerprint(*flags: str) -> str:
        return read(place, "--data_path", sources["lines"], *flags).fingerprints()["train"]

    first = fingerprint()
    assert first == fingerprint() == fingerprint("--learning_rate", "1")
    others = [["--seed", "3"], ["--shuffle_buffer_size", "9"], ["--eval_size", "5"], ["--max_seq_length", "40"]]
    others += [["--data_path", sources["rows"]], ["--data_path", sources["data"]]]
    prints = [fingerprint(*flags) for flags in others]
    assert len({first, *prints}) == 1 + len(others)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--max_steps", "-1"], "--streaming true requires --max_steps of at least 1 (got -1)"),
        (["--group_by_length"], "--streaming true does not support --group_by_length true"),
        (["--task", "sst2"], "--streaming true does not support --task sst2"),
        (["--data_path", "{data},{rows}"], "--streaming requires weights for several sources"),
        (["--data_path", "none.jsonl"], "no such data file: none.jsonl"),
        (["--eval_size", "49"], "cannot hold out 49 examples of"),
        (
            ["--data_path", "{wiki}:1,{lines}:5", "--eval_size", "60"],
            "--eval_size: cannot hold out 50 examples of {lines}, its share of 60: it has 48; give less",
        ),
        (["--eval_size", "48"], "has no record left for process 0"),
        (["--data_path", "{broken}"], "broken.jsonl, line 3, column 2: not valid JSON"),
        (["--data_path", "http://127.0.0.1:1/a.jsonl"], "127.0.0.1:1/a.jsonl cannot be read"),
        (["--data_path", "{address}/none.jsonl"], "/none.jsonl cannot be read: 404"),
        (["--max_seq_length", "3"], "--max_seq_length cuts off every answer"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    flags: list[str], problem: str, place: Place, sources: dict[str, str], server: Server, tmp_path: Path, run: Run
) -> None:
    names = {**sources, "broken": place.spoiled("broken.jsonl", '{"text": "a"}\n{"text": "b"}\n{broken')}
    names["address"] = server.address
    words = [*STREAMING, "--data_path", sources["lines"], *(flag.format(**names) for flag in flags)]
    ended = run(place.words(tmp_path / "out", *words))
    assert ended.status == 2 and len(ended.mistakes) == 1 and problem.format(**sources) in ended.mistakes[0], ended.err
    assert not (tmp_path / "out").exists()


def test_a_dropped_connection_ends_the_run_in_one_line_and_keeps_its_checkpoints(
    place: Place,
    server: Server,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_part, "WAITS", (0.0, 0.0, 0.0))
    flags = [*STREAMING, "--pruning", "none", "--report", "false", "--save_steps", "2", "--max_steps", "60"]
    flags += ["--data_path", f"{server.address}/many.jsonl"]
    server.lasts = [10**6, 10**6, 10**6, 9000, 100, 1500]
    ended = run(place.words(tmp_path / "whole", *flags))
    assert ended.status == 0, ended.err
    line = f"{server.address}/many.jsonl: the connection dropped after record 124 (closed 12710 bytes before the end)"
    assert ended.err.count("the connection dropped") == 1 and f"{line}: trying again" in ended.err
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["warnings"] == [f"{line}: trying again"]
    assert not server.lasts and any(offset for offset in server.offsets)
    server.lasts = [10**6, 10**6, 10**6, 9000, *[0] * 9]
    ended = run(place.words(tmp_path / "cut", *flags))
    server.lasts = []
    assert ended.status == 2 and "(3 new attempts failed)" in ended.mistakes[0] and len(ended.mistakes) == 1, ended.err
    saved = find("last", tmp_path / "cut")
    assert saved is not None and 0 < saved.step < 60
    # the run goes on once the server is back
    ended = run(place.words(tmp_path / "cut", *flags, "--resume_from_checkpoint", "last"))
    assert ended.status == 0, ended.err
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    losses = [[json.loads(line)["loss"] for line in own] for own in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 60


def test_memory_does_not_grow_with_the_data(place: Place, tmp_path: Path, alone: None) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(200_000):
            file.write(f'{{"instruction": "the cat {number}", "output": "sees the dog"}}\n')
    stream = read(place, "--data_path", str(path)).stream
    assert stream is not None
    part = stream.sources[0].part(rank=1, world=20)
    rows = stream.open()
    rows.take(200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(len(part.read(64)) for _ in range(10_000 // 64 + 1)) == 10_000
    rows.take(2000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
