"""Hundreds of malformed inputs, seeds fixed: each is one clear line and exit status 2, or no mistake."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.data import mmlu
from apt_ds.data.conversations import load_examples
from apt_ds.data.instructions import build_dataset
from apt_ds.runtime import exit_status, zero
from tests.support import tiny
from tests.support.fuzz_tasks import articles, exchanges, pairs
from tests.support.fuzz_values import write
from tests.support.paths import ROOT

FLAGS = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json")]
Case = Callable[[random.Random, Path], Callable[[], object]]


def data_file(draw: random.Random, folder: Path) -> Callable[[], object]:
    alpaca = [{"instruction": "see the cat", "input": "", "output": f"a {word} dog"} for word in tiny.WORDS[:4]]
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sees a dog"}]
    records = draw.choice([alpaca, [{"messages": turns}] * 3])
    if draw.random() < 0.5:
        path = write(folder / "data.json", records, draw)
    else:

        def lines(value: Any) -> str:
            return "\n".join(map(json.dumps, value)) if isinstance(value, list) else json.dumps(value)

        path = write(folder / "data.jsonl", records, draw, lines)
    return lambda: build_dataset(load_examples(path), tiny.tokenizer(), 32)


def options_file(draw: random.Random, folder: Path) -> Callable[[], object]:
    options = {"sparsity": 0.3, "rank": 8, "bf16": True, "adapter_targets": ["q", "v"], "learning_rate": 1e-4}
    options |= {"pruning": "gradual", "max_steps": 5, "output_dir": "out"}
    if draw.random() < 0.5:
        path = write(folder / "run.json", options, draw)
    else:
        path = write(folder / "run.yaml", options, draw, yaml.safe_dump)
    return lambda: resolve([*FLAGS, "--config", str(path)])


def deepspeed_file(draw: random.Random, folder: Path) -> Callable[[], object]:
    name = draw.choice(["zero2", "zero3", "zero2_offload", "zero3_offload"])
    config = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text(encoding="utf8"))
    path = write(folder / "ds.json", config, draw)

    def read() -> None:
        zero.check_config(load_config(resolve(["--deepspeed", str(path)]), 1, 64), str(path))

    return read


def words(draw: random.Random, folder: Path) -> Callable[[], object]:
    given = ["--sparsity", "0.3", "--rank", "8", "--bf16", "--seed", "1", "--structure", "uniform", "--max_steps", "9"]
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(given))
        given[place] = draw.choice(
            ["", "-", "--", "--sparsityy", "nan", "-1", "1e999", "true", "ü", "--=3", "None", "=" * 9]
        )
    return lambda: resolve([*FLAGS, *given])


def questions(draw: random.Random, folder: Path) -> Callable[[], object]:
    rows = [[f"question {i}", "a", "b", "c", "d", "ABCD"[i]] for i in range(4)]

    def table(value: Any) -> str:
        whole = value if isinstance(value, list) else [value]
        return "\n".join(",".join(map(str, row)) if isinstance(row, list) else str(row) for row in whole)

    for split in ("dev", "test"):
        (folder / split).mkdir(exist_ok=True)
        (folder / split / f"anatomy_{split}.csv").write_text(table(rows), encoding="utf8")
    split = draw.choice(["dev", "test"])
    write(folder / split / f"anatomy_{split}.csv", rows, draw, table)
    return lambda: mmlu.load(str(folder), ("anatomy",))


@pytest.mark.parametrize(
    ("case", "count", "refused"),
    [
        *[
            (data_file, 200, 120),
            (options_file, 120, 70),
            (deepspeed_file, 150, 60),
            (words, 100, 60),
            (questions, 80, 30),
        ],
        *[(pairs, 150, 60), (articles, 150, 60), (exchanges, 120, 50)],
    ],
)
def test_malformed_input_is_one_line_and_status_two(
    case: Case,
    count: int,
    refused: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(exit_status, "leave", leave)
    monkeypatch.setattr("apt_ds.runtime.collectives.shut_down", lambda: None)
    monkeypatch.chdir(tmp_path)
    statuses = []
    for seed in range(count):
        action = case(random.Random(seed), tmp_path)
        capfd.readouterr()
        try:
            exit_status.main(action)
            statuses.append(0)
        except SystemExit as end:
            statuses.append(int(str(end.code)))
        err = capfd.readouterr().err
        if statuses[-1]:
            lines = [line for line in err.splitlines() if line.startswith("error: ")]
            assert statuses[-1] == 2 and len(lines) == 1 and len(err.splitlines()) == 1, (case.__name__, seed, err)
            assert len(lines[0]) < 1000, (case.__name__, seed, lines[0])
    assert statuses.count(2) >= refused, statuses.count(2)


def test_the_harness_notices_a_traceback(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(exit_status, "leave", leave)
    for error, status in ((UserError("a line"), 2), (KeyError("a defect"), 1)):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(SystemExit) as end:
            exit_status.main(fail)
        assert end.value.code == status
