"""A model that cannot be written: one line, a checkpoint of the last step, and a resumed run that only writes it."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apt_ds.eval.evaluator import Evaluator
from apt_ds.training import checkpoint
from apt_ds.training.checkpoint import folder as checkpoint_folder
from apt_ds.training.train_step import TrainStep
from tests.support import multiprocess, tiny
from tests.support.launcher import Place, Run
from tests.support.small_disk import small_disk

MEASURED = (
    *("step_seconds", "peak_memory_bytes", "generated_tokens_per_second", "rebuild_seconds", "rebuild_peak_bytes"),
    *("seconds", "steps_seconds", "scoring_seconds", "rebuilds_seconds", "evaluation_seconds", "evaluation_peak_bytes"),
    *("peak_reserved_bytes", "peak_added_bytes", "base_memory_bytes", "memory_by_phase"),
    *("decode_tokens_per_second", "prefill_tokens_per_second"),
)
SHORT = ["--max_steps", "2", "--calibration_steps", "1"]
FLAGS = [
    *("--pruning", "gradual", "--structure", "adaptive", "--max_steps", "4", "--sparsity", "0.4", "--align", "4"),
    *("--mask_step", "0.5", "--rank", "2", "--prune_every", "2", "--save_steps", "0", "--timeout", "20"),
]


def names(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir())


def summary(output: Path) -> dict[str, Any]:
    """What a summary says, but for what is measured."""
    figures = unmeasured(json.loads((output / "summary.json").read_text(encoding="utf8")))
    assert isinstance(figures, dict)
    return figures


def unmeasured(figures: Any) -> Any:
    """Figures without what is measured, at any depth."""
    if isinstance(figures, dict):
        return {key: unmeasured(value) for key, value in figures.items() if key not in MEASURED}
    return [unmeasured(value) for value in figures] if isinstance(figures, list) else figures


def limited(run: Run, words: list[str], size: int) -> Any:
    """How a run ends in which no file may be larger than `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        return run(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("every", "stays"), [("0", False), ("500", False), ("2", True)])
def test_a_resumed_run_only_writes_the_model(
    every: str, stays: bool, place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, straight = tmp_path / "out", tmp_path / "straight"
    tiny.save_model(tmp_path / "model", vocab_size=1000)
    more = [*SHORT, "--save_steps", every, "--model_name_or_path", str(tmp_path / "model")]
    words = place.words(output, *more, "--report", "false")
    ended = limited(run, words, 100_000)
    assert ended.status == 2 and len(ended.mistakes) == 1
    line = ended.mistakes[0]
    assert "cannot write the model to" in line and "File too large" in line
    assert "step 2 is saved: --resume_from_checkpoint last then only writes the model" in line
    assert names(output) == ["checkpoint-2", "config.yaml", "metrics.jsonl"]

    with monkeypatch.context() as patch:
        for owner, name in ((TrainStep, "run"), (Evaluator, "evaluate")):
            patch.setattr(owner, name, lambda *given: pytest.fail("it trains or evaluates again"))
        assert run([*words, "--resume_from_checkpoint", "last"]).status == 0
    kept = ["checkpoint-2"] if stays else []
    assert names(output) == [*kept, "config.yaml", "metrics.jsonl", "model", "summary.json"]

    assert run(place.words(straight, *more, "--report", "false")).status == 0
    assert names(straight) == names(output) and summary(straight) == summary(output)
    for name in ("model.safetensors", "config.json"):
        assert (output / "model" / name).read_bytes() == (straight / "model" / name).read_bytes(), name


def test_a_last_step_that_cannot_be_saved_costs_no_model(
    place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that nobody asked for must not end the run; one that was asked for does."""

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_folder, "_fill", full)
    words = place.words(tmp_path / "out", *SHORT, "--report", "false")
    ended = run([*words, "--save_steps", "0"])
    assert ended.status == 0, ended.err
    assert "the last step is not saved before the model is written: cannot write the checkpoint" in ended.err
    assert names(tmp_path / "out") == ["config.yaml", "metrics.jsonl", "model", "summary.json"]
    ended = run([*words, "--overwrite_output_dir", "--save_steps", "1"])
    assert ended.status == 2 and "cannot write the checkpoint" in ended.mistakes[0]


def test_a_damaged_evaluation_is_taken_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    checkpoint.add_evaluation(tmp_path, 3, {"held_out_loss": 0.1})
    file = tmp_path / "checkpoint-3" / checkpoint.EVALUATION
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    whole = file.read_text(encoding="utf8")
    assert checkpoint.evaluation(file.parent) == {"held_out_loss": 0.1}
    for spoilt in (whole.replace("0.1", "0.2"), whole[:-5], "[]", "null", "1"):
        file.write_text(spoilt, encoding="utf8")
        assert checkpoint.evaluation(file.parent) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("failed")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own."""
    with small_disk(tmp_path / "disk", 24 << 20) as place:
        yield place


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_that_cannot_write_end_and_resume_to_the_same_model(folder: Path, disk: Path) -> None:
    """Sharded weights. The disk is full when the writing starts, then an adapter cannot be merged on the first rank."""
    output = disk / "out"
    flags = [*FLAGS, "--output_dir", str(output)]
    full = {"folder": str(folder), "where": "export", "victim": 0, "number": 0, "count": 1, "flags": flags}
    go_on = [*flags, "--resume_from_checkpoint", "last"]
    jobs = [
        ("fault_injection.faulty", full),
        ("fault_injection.unmerged", {"folder": str(folder), "stage": 3, "flags": go_on}),
    ]
    for (job, arguments), status in zip(jobs, (2, 1), strict=True):
        with pytest.raises(multiprocess.WorldFailedError) as failure:
            multiprocess.run(2, job, arguments, timeout=120)
        assert failure.value.statuses == [status, status], failure.value.text
        assert "step 4 is saved: --resume_from_checkpoint last then only writes the model" in failure.value.text
        assert names(output) == ["checkpoint-4", "config.yaml", "metrics.jsonl"]
        (disk / "ballast").unlink(missing_ok=True)
    arguments = {"folder": str(folder), "name": "on", "stage": 3, "offload": False}
    on = multiprocess.run(2, "whole", arguments | {"flags": go_on})
    straight = multiprocess.run(2, "whole", arguments | {"flags": [*FLAGS, "--output_dir", str(disk / "straight")]})
    assert on == straight
