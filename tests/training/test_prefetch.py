"""Values of coming steps are made by threads, and none is lost, made twice or out of order."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from apt_ds.training.micro_batches import MicroBatches, StepData
from apt_ds.training.prefetch import Prefetcher
from tests.support import tiny
from tests.support.launcher import Place, Run


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_get_their_values(workers: int) -> None:
    calls: list[int] = []
    threads: set[str] = set()

    def make(step: int) -> int:
        calls.append(step)
        threads.add(threading.current_thread().name.split("_")[0])
        return step * step

    prefetcher = Prefetcher(make, workers)
    # a resumed run begins anywhere, and calibration begins again
    steps = [*range(5, 12), *range(3), 40]
    assert [prefetcher.get(step) for step in steps] == [step * step for step in steps]
    prefetcher.close()
    assert threads == {"dataloader" if workers else threading.current_thread().name.split("_")[0]}
    assert [calls.count(step) for step in range(5, 12)] == [1] * 7
    assert prefetcher.get(7) == 49
    prefetcher.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dataloader")]


def test_the_next_step_is_made_while_this_one_computes() -> None:
    begun = threading.Event()

    def make(step: int) -> int:
        if step == 1:
            begun.set()
        return step

    prefetcher = Prefetcher(make, 1)
    prefetcher.get(0)
    assert begun.wait(10)
    prefetcher.close()


def test_a_failure_is_raised_by_its_own_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise OSError("the disk is gone")
        return step

    prefetcher = Prefetcher(make, 2)
    assert prefetcher.get(0) == 0
    time.sleep(0.05)
    assert prefetcher.get(1) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        prefetcher.get(2)
    prefetcher.close()


def test_a_step_hardly_waits_for_data_that_is_slow_to_read(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = MicroBatches._make
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    tiny.save_model(tmp_path / "model", **sizes, num_key_value_heads=4)
    tiny.save_data(tmp_path / "data.json")

    def profile(delay: float) -> dict[str, Any]:
        """The time of the steps by phase, where the data of a step take `delay` seconds to read."""

        def slowly(batches: MicroBatches, step: int) -> StepData:
            time.sleep(delay)
            return make(batches, step)

        monkeypatch.setattr(MicroBatches, "_make", slowly)
        options = ["--pruning", "none", "--profile", "--per_device_train_batch_size", "8", "--report", "false"]
        words = Place(tmp_path).words(tmp_path / f"out{delay > 0}", *options, "--dataloader_num_workers", "1")
        ended = run(words)
        assert ended.status == 0, ended.err
        summary = json.loads((tmp_path / f"out{delay > 0}" / "summary.json").read_text(encoding="utf8"))
        return summary["profile"]["dense"]

    dense = profile(sum(profile(0.0)["seconds"].values()) / 2)
    # beside other work the threads themselves wait some milliseconds for a processor
    assert dense["steps"]["counted"] >= 4 and dense["share"]["data"] < 0.1, dense
