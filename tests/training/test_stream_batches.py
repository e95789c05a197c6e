"""Steps of a stream: exact from any step on, rewound for earlier steps, and summed up for the summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.models import loading
from apt_ds.training.datasets import read_data
from apt_ds.training.run_data import Data
from apt_ds.training.stream_batches import StreamBatches
from tests.support import tiny
from tests.support.launcher import Place, own_world

STEPS, BATCH = 60, 4


@pytest.fixture(scope="module")
def run(place: Place) -> Iterator[RunConfig]:
    """Two sources by weight, whose passes end several times."""
    records = json.loads((place.folder / "data.json").read_text())
    records.insert(9, {"instruction": "the cat " * 70, "output": "sees"})  # nothing of its answer is left
    lines = place.spoiled("lines.jsonl", "\n".join(map(json.dumps, records)))
    rows = place.spoiled("rows.jsonl", "\n".join(json.dumps({"text": " ".join(tiny.WORDS[i:] * 3)}) for i in range(20)))
    flags = ["--streaming", "--shuffle_buffer_size", "7", "--data_path", f"{lines}:0.7,{rows}:0.3", "--eval_size", "3"]
    with own_world():
        size = ["--per_device_train_batch_size", str(BATCH), "--max_steps", str(STEPS)]
        yield resolve(place.words(Path("none"), *flags, *size))


@pytest.fixture(scope="module")
def data(run: RunConfig) -> Data:
    return read_data(run, loading.find_base(run.model.model_name_or_path))


def batches_of(run: RunConfig, data: Data, workers: int = 0) -> StreamBatches:
    assert data.stream is not None
    return StreamBatches(run.replace(dataloader_num_workers=workers), data.stream, data.order, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def straight(run: RunConfig, data: Data) -> list[list[dict[str, list[int]]]]:
    """The rows of every step."""
    batches = batches_of(run, data)
    return [batches.rows(step) for step in range(STEPS)]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_can_be_resumed_from(run: RunConfig, data: Data, straight: list, workers: int) -> None:
    saving = batches_of(run, data, workers)
    states = []
    for step in range(STEPS):
        states.append(json.loads(json.dumps(saving.state_dict()[0])))
        assert saving.rows(step) == straight[step]
    saving.close()
    for step in range(STEPS):
        again = batches_of(run, data, workers)
        again.load_state_dict(states[step], {})
        assert [again.rows(number) for number in range(step, min(step + 3, STEPS))] == straight[step : step + 3]
        again.close()


def test_an_earlier_step_rewinds(run: RunConfig, data: Data, straight: list) -> None:
    batches = batches_of(run, data, 1)
    assert [batches.rows(step) for step in (0, 1, 2, 2, 0, 1, 5, 3)] == [straight[n] for n in (0, 1, 2, 2, 0, 1, 5, 3)]
    batches.close()
    # the thread is gone, and the next step comes nevertheless
    assert batches.rows(4) == straight[4]
    batches.close()


def test_passes_have_all_rows_in_other_orders(run: RunConfig, data: Data, straight: list) -> None:
    rows = [tuple(row["input_ids"]) for step in straight for row in step]
    conversations = [tuple(row["input_ids"]) for step in straight for row in step if row["labels"][0] == -100]
    # 48 records, 2 of them held out
    passes = [conversations[46 * n : 46 * (n + 1)] for n in range(len(conversations) // 46)]
    assert len(passes) == 3 and all(set(one) == set(passes[0]) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    figures = data.describe()["sources"]
    assert [row["seen"] for row in figures] == [len(conversations), len(rows) - len(conversations)]
    assert figures[0]["seen"] == round(0.7 * STEPS * BATCH)


def test_dropped_examples_are_counted(run: RunConfig, data: Data) -> None:
    batches = batches_of(run, data)
    assert batches.dropped() == 0
    batches.rows(STEPS - 1)
    assert batches.dropped() >= 3


def test_batches_have_the_rows(run: RunConfig, data: Data, straight: list) -> None:
    batches = batches_of(run, data)
    batch = batches.on_host(0, 0)
    for ids, row in zip(batch.input_ids.tolist(), straight[0], strict=True):
        assert ids[: len(row["input_ids"])] == row["input_ids"]
    assert batches.step(0).layout.tokens == sum(len(row["input_ids"]) for row in straight[0])
