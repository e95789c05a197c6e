"""Where a run gets the dense model's tokens from, what a resumed run must share, and what the summary says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import GlobalOrder
from apt_ds.data.tokenized import IGNORED, TokenizedSet
from apt_ds.models import fingerprint, loading
from apt_ds.models.loading import Base
from apt_ds.training.checkpoint import Checkpoint
from apt_ds.training.dense_distillation import DenseDistillation
from apt_ds.training.micro_batches import MicroBatches
from apt_ds.training.run_data import Data
from tests.support import tiny

SET = TokenizedSet.of([{"input_ids": [5, 6, 7 + n], "labels": [IGNORED, 6, 7 + n]} for n in range(9)])
ORDER = GlobalOrder(len(SET), 2, seed=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("dense")
    tiny.save_model(folder / "model")
    return loading.find_base(str(folder / "model"))


def begun(
    base: Base, data: TokenizedSet, folder: Path, **flags: object
) -> tuple[DenseDistillation, MicroBatches, dict[str, str]]:
    """A run of three steps of two rows, after `begin`."""
    run = RunConfig(
        model_name_or_path=base.source,
        distill="logits",
        per_device_train_batch_size=2,
        data_cache_dir=str(folder),
        **flags,
    )
    batches = MicroBatches(run, data, ORDER, 0, torch.device("cpu"))
    dense = DenseDistillation(run, base, {}, Data(data, data, [], ORDER, 3, None), batches)
    model = loading.load_model(base, run)
    return dense, batches, dense.begin(model, fingerprint.fingerprint(model))


def test_a_cache_is_made_once_and_found_again(base: Base, tmp_path: Path) -> None:
    dense, batches, known = begun(base, SET, tmp_path)
    (folder,) = tmp_path.iterdir()
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, others, same = begun(base, SET, tmp_path)
    assert same == known and {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    figures = dense.figures(0.5)
    # three steps of two rows of two trained tokens each
    assert figures["tokens"] == 12 and (figures["source"], figures["distance"]) == ("cache", 0.5)
    assert again.figures(0.5) == figures
    for step in range(3):
        own, other = batches.on_host(step, 0), others.on_host(step, 0)
        assert own.teacher_ids.shape == (4, 64) and torch.equal(own.teacher_ids, other.teacher_ids)


def test_a_lost_or_unwanted_cache_is_made_again_with_the_same_content(base: Base, tmp_path: Path) -> None:
    known = begun(base, SET, tmp_path)[2]
    assert begun(base, SET, tmp_path, overwrite_cache=True)[2] == known
    assert begun(base, SET, tmp_path / "other")[2] == known


def test_a_cache_of_other_data_is_refused_and_a_resumed_run_needs_the_same(base: Base, tmp_path: Path) -> None:
    own = tmp_path / "own"
    known = begun(base, SET, tmp_path, teacher_cache=str(own))[2]
    other = TokenizedSet.of([dict(row, input_ids=[4, *row["input_ids"][1:]]) for row in SET])
    with pytest.raises(UserError, match="was made from other training data"):
        begun(base, other, tmp_path, teacher_cache=str(own))
    changed = begun(base, other, tmp_path, teacher_cache=str(own), overwrite_cache=True)[2]
    counts = {"global_batch": 2, "total_steps": 3}
    run = RunConfig(distill="logits")
    saved = Checkpoint(1, run.flags(), counts, known, {}, {})
    saved.check(run, counts, known)
    with pytest.raises(UserError, match="the cache of the dense model's probabilities is not what the checkpoint"):
        saved.check(run, counts, changed)


def test_a_live_teacher_writes_nothing(base: Base, tmp_path: Path) -> None:
    dense, batches, known = begun(base, SET, tmp_path, teacher_source="live")
    assert known == {} and not list(tmp_path.iterdir())
    assert dense.figures(None) == {"source": "live", "distance": None}
    plain = batches.on_device(0, 0)
    assert plain.teacher_ids is None and batches.taught(plain).teacher_ids.shape == (4, 64)
    assert batches.taught(replace(plain)).teacher_log_probabilities.max() <= 0
