"""What a run's time and memory are made of, and that they survive a checkpoint."""

from __future__ import annotations

import gc
import json
import mmap
import time

import pytest
import torch

from apt_ds.runtime.memory import trim_heap
from apt_ds.training.meter import PARTS, Meter

MB = 2**20


def taken(megabytes: int) -> mmap.mmap:
    """So much memory of the system, touched. The heap would hand out, and keep, what other tests have freed."""
    area = mmap.mmap(-1, megabytes * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(area), mmap.PAGESIZE):
        area[page] = 1
    return area


def use(megabytes: int) -> None:
    """Touch so much memory, and give it back."""
    taken(megabytes).close()


def spend() -> Meter:
    """A run in small: dense steps, scoring, a rebuild, steps at the final size, evaluations between them."""
    meter = Meter(torch.device("cpu"))
    meter.forget_peak()
    meter.step(9.0, dense=True, calibrating=True)
    meter.step(3.0, dense=True)
    with meter.evaluation():
        use(240)
    with meter.scoring():
        use(120)
        time.sleep(0.05)
    meter.begin_rebuild()
    use(20)
    meter.rebuilt(2.0, cut=True)
    for seconds in (7.0, 1.0, 1.5, 1.25):
        meter.step(seconds, dense=False)
    return meter


def test_the_whole_run_and_the_final_size_have_figures_of_their_own() -> None:
    meter = spend()
    whole, dense, final = meter.whole(), meter.dense(), meter.final()
    assert (whole["steps_seconds"], whole["rebuilds_seconds"]) == (3.0 + 10.75, 2.0)
    assert 9.05 <= whole["scoring_seconds"] < 12 and whole["evaluation_seconds"] > 0
    assert whole["seconds"] == meter.seconds == sum(whole[f"{part}_seconds"] for part in PARTS[:3])
    assert (dense["step_seconds"], final["step_seconds"]) == (3.0, 1.25)
    # scoring was where the run needed most; evaluation needed more still and is apart
    assert whole["peak_memory_bytes"] - final["peak_memory_bytes"] > 80 * MB
    assert whole["peak_memory_bytes"] - dense["peak_memory_bytes"] > 80 * MB
    assert whole["evaluation_peak_bytes"] - whole["peak_memory_bytes"] > 80 * MB
    assert whole["peak_memory_bytes"] - meter.rebuild_peaks[0] > 60 * MB


def test_no_step_at_the_final_size_leaves_no_figure() -> None:
    meter = spend()
    meter.begin_rebuild()
    meter.rebuilt(1.0, cut=False)
    assert set(meter.final().values()) == {None} and len(meter.final()) == 4
    assert meter.whole()["peak_memory_bytes"] and meter.dense()["step_seconds"] == 3.0


def test_a_run_that_goes_on_has_the_figures_of_the_one_before() -> None:
    meter = spend()
    use(240)
    again = Meter(torch.device("cpu"))
    use(240)  # loading counts nowhere
    own_base, again.base = again.base, meter.base
    again.load_state_dict(json.loads(json.dumps(meter.state_dict()[0])), {})
    for each in ("whole", "dense", "final"):
        assert getattr(again, each)() == getattr(meter, each)()
    again.base = own_base  # each process has its own
    assert again.rebuilds == [2.0] and again.last_rebuild() == 2.0
    again.step(1.0, dense=False)
    assert again.whole()["seconds"] == pytest.approx(meter.seconds + 1.0)
    assert again.whole()["peak_memory_bytes"] == meter.whole()["peak_memory_bytes"]


def test_memory_by_phase_leaves_out_what_the_process_used_before() -> None:
    # cyclic garbage of other tests must not be freed between two measurements
    gc.collect()
    trim_heap()
    ballast = taken(400)
    meter = Meter(torch.device("cpu"))
    use(100)
    meter.step(1.0, dense=True)
    with meter.evaluation():
        use(300)
    with meter.scoring(at_once=True):
        use(200)
    meter.begin_rebuild()
    use(50)
    meter.rebuilt(1.0, cut=True)
    use(60)
    meter.step(1.0, dense=False)
    with meter.apart("writing"):
        use(350)
    added = {phase: round(peak / MB / 10) * 10 for phase, peak in meter.memory_by_phase().items()}
    expected = {
        "evaluation": 300,
        "dense_steps": 100,
        "scoring": 200,
        "rebuilds": 50,
        "final_steps": 60,
        "writing": 350,
    }
    assert added.keys() == expected.keys()
    # the base of 400 MB and the interpreter are in none of them
    far = {phase: (added[phase], size) for phase, size in expected.items() if abs(added[phase] - size) > 30}
    assert not far
    dense, final, whole = meter.dense(), meter.final(), meter.whole()
    assert dense["peak_memory_bytes"] - dense["peak_added_bytes"] == meter.base == whole["base_memory_bytes"]
    assert final["peak_added_bytes"] < dense["peak_added_bytes"] and meter.base > 400 * MB
    # writing takes no part in the peak of the run
    assert whole["peak_memory_bytes"] - meter.base < 250 * MB
    ballast.close()


class Allocator:
    """Stands for the allocator of a GPU: bytes in use, and bytes that it has taken from the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = self.reserved = self.peak_used = self.peak_reserved = 0
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak_used)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: self.peak_reserved)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: self.reset())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def reset(self) -> None:
        self.peak_used, self.peak_reserved = self.used, self.reserved

    def step(self, used: int, reserved: int, left: int) -> None:
        """Use so many bytes, take so many from the device, and keep `left` of them afterwards."""
        self.peak_used, self.peak_reserved = max(self.peak_used, used), max(self.peak_reserved, reserved)
        self.used, self.reserved = left, reserved


def test_what_a_gpu_reserves_is_measured_like_what_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Allocator(monkeypatch)
    meter = Meter(torch.device("cuda", 0))
    gpu.step(80, 90, left=50)
    meter.step(2.0, dense=True)
    with meter.evaluation():
        gpu.step(200, 300, left=50)
        gpu.reserved = 90
    meter.begin_rebuild()
    gpu.step(100, 140, left=30)
    meter.rebuilt(1.0, cut=True)
    # the cut has left holes: half as much is used, and nearly as much is reserved
    gpu.step(40, 85, left=30)
    gpu.peak_reserved = 85
    meter.step(1.0, dense=False)
    assert meter.dense() == {
        "step_seconds": 2.0,
        "peak_memory_bytes": 80,
        "peak_added_bytes": 80,
        "peak_reserved_bytes": 90,
    }
    assert meter.final() == {
        "step_seconds": 1.0,
        "peak_memory_bytes": 40,
        "peak_added_bytes": 40,
        "peak_reserved_bytes": 85,
    }
    whole = meter.whole()
    assert (whole["peak_memory_bytes"], whole["peak_reserved_bytes"]) == (100, 140)
    again = Meter(torch.device("cuda", 0))
    saved = json.loads(json.dumps(meter.state_dict()[0]))
    again.load_state_dict(saved, {})
    assert again.whole() == whole and again.final() == meter.final()
    # a checkpoint of an earlier version has no such figures
    del saved["reserved"], saved["added"]
    older = Meter(torch.device("cuda", 0))
    older.load_state_dict(saved, {})
    assert older.whole()["peak_memory_bytes"] == 100 and older.whole()["peak_reserved_bytes"] is None
