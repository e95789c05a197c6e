"""Reading weights: where they go, and what the host holds meanwhile."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_ds.models.weights import device_map, quiet_transformers, read_weights
from tests.support import tiny

META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 63 MB in bf16, stored in fp32: a weight that stays on the host is a copy, no page of the file."""
    target = tmp_path_factory.mktemp("large")
    return tiny.save_model(target, hidden_size=512, intermediate_size=2048, num_hidden_layers=8)


def return_freed_pages() -> None:
    """Give what was freed back to the system, so that memory that is taken again counts."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def private_bytes() -> int:
    """Bytes of this process that are no pages of a file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", status)[0])


def peak_while(action: Callable[[], Any]) -> tuple[Any, int]:
    """What `action` returns, and the most bytes that the host had more while it ran."""
    return_freed_pages()
    before, ended, peaks = private_bytes(), threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.001):
            peaks.append(private_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = action()
    finally:
        ended.set()
        watcher.join()
    return result, max(*peaks, private_bytes() - before)


def test_a_device_takes_weights_without_a_second_model_on_the_host(folder: Path) -> None:
    quiet_transformers()
    peaks = {}
    for device in (META, CPU, META):
        (model, missing), peaks[device] = peak_while(
            lambda device=device: read_weights(str(folder), torch.bfloat16, "sdpa", device=device)
        )
        assert not missing and {p.device for p in model.parameters()} == {device}
        size = sum(p.nbytes for p in model.parameters())
        del model
    assert peaks[CPU] > 0.8 * size  # so the meter sees a model
    assert peaks[META] < 0.1 * size


def test_the_map_is_for_accelerators_below_stage_3() -> None:
    cuda = torch.device("cuda", 1)
    assert device_map(cuda, sharded=False) == {"": cuda}
    for device, sharded in ((cuda, True), (CPU, False), (None, False)):
        assert device_map(device, sharded) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_weights_of_the_file(folder: Path) -> None:
    loaded = read_weights(str(folder), torch.bfloat16, "sdpa", device=torch.device("cuda", 0))
    expected, _ = read_weights(str(folder), torch.bfloat16, "sdpa")
    for (name, own), (_, other) in zip(loaded[0].named_parameters(), expected.named_parameters(), strict=True):
        assert own.is_cuda and torch.equal(own.cpu(), other), name
