"""Checkpoint folders by themselves: whole or not at all, damage is named, another run's is refused. One process."""

from __future__ import annotations

import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.models import fingerprint
from apt_ds.models.base_config import decisive, first_difference
from apt_ds.training import checkpoint
from apt_ds.training.checkpoint import LAST, MANIFEST, Checkpoint, DamagedError
from apt_ds.training.checkpoint import manifest as checkpoint_manifest
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT
from tests.support.small_disk import small_disk

COUNTS = {"global_batch": 8, "total_steps": 10}
PRINTS = {"train": "a", "held_out": "b", "corpus": "", "model": "c"}


@pytest.fixture
def run() -> RunConfig:
    return resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json")])


def checkpoint_of(run: RunConfig, step: int) -> Checkpoint:
    values = run.flags()
    tensors = {"trained": {"master:a": torch.arange(5000.0) + step}, "pruner": {"kept_ids": torch.arange(3)}}
    return Checkpoint(step, values, COUNTS, PRINTS, {"figures": {"loss": 0.1}}, tensors, {}, b'{"step": 1}\n')


def steps(output: Path) -> list[int]:
    return sorted(step for step, _ in checkpoint.numbered(output))


def test_what_is_read_is_what_was_written(run: RunConfig, tmp_path: Path) -> None:
    written = checkpoint_of(run, 3)
    path = checkpoint.write(tmp_path, written, 0)
    read = checkpoint.find(LAST, tmp_path)
    assert read is not None and read.path == str(path) and path.name == "checkpoint-3"
    for name in ("step", "run", "counts", "fingerprints", "values", "metrics"):
        assert getattr(read, name) == getattr(written, name), name
    assert torch.equal(read.tensors["trained"]["master:a"], written.tensors["trained"]["master:a"])
    read.check(run, COUNTS, PRINTS)
    assert not [path.name for path in tmp_path.iterdir() if path.name != "checkpoint-3"]
    assert {file.suffix for file in path.iterdir()} == {".json", ".jsonl", ".safetensors"}


@pytest.mark.dist
def test_what_one_rank_cannot_read_ends_all_ranks(run: RunConfig, tmp_path: Path) -> None:
    checkpoint.write(tmp_path, checkpoint_of(run, 3), limit=0)
    folder = tmp_path / "checkpoint-3"
    message = multiprocess.run(2, "mistake_jobs.unreadable_on", {"odd": 1, "folder": str(folder)}, timeout=120)
    assert message == f"checkpoint {folder} cannot be read: [Errno 116] Stale file handle"


def test_an_old_one_that_cannot_be_removed_ends_no_run(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on NFS, where a file that is still read leaves another behind in its folder."""
    old, remove = checkpoint.write(tmp_path, checkpoint_of(run, 1), 1), shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **more: path.rmdir() if path == old else remove(path, **more))
    checkpoint.write(tmp_path, checkpoint_of(run, 2), 1)
    assert "checkpoint-1 is not a checkpoint any more, but could not be removed" in capsys.readouterr().err
    newest = checkpoint.find(LAST, tmp_path)
    assert newest is not None and newest.step == 2


def test_the_oldest_go_only_when_there_are_too_many(run: RunConfig, tmp_path: Path) -> None:
    for step in (1, 2, 10, 3):
        checkpoint.write(tmp_path, checkpoint_of(run, step), 2)
    # the one just written stays, whatever its number
    assert steps(tmp_path) == [3, 10]
    for step in (11, 12, 13):
        checkpoint.write(tmp_path, checkpoint_of(run, step), 0)
    assert steps(tmp_path) == [3, 10, 11, 12, 13]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("name", ["trained.safetensors", "state.json", "metrics.jsonl", MANIFEST])
@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
def test_damage_is_named_and_passed_over(
    name: str, harm: Callable[[Path], None], run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 8):
        checkpoint.write(tmp_path, checkpoint_of(run, step), 0)
    harm(tmp_path / "checkpoint-8" / name)
    older = checkpoint.find(LAST, tmp_path)
    assert older is not None and older.step == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint-8" in line and name in line
    with pytest.raises(DamagedError, match=name):
        checkpoint.find(str(tmp_path / "checkpoint-8"), tmp_path)
    harm(tmp_path / "checkpoint-4" / name)
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.find(LAST, tmp_path)


def test_a_manifest_that_only_looks_otherwise_is_refused(run: RunConfig, tmp_path: Path) -> None:
    manifest = checkpoint.write(tmp_path, checkpoint_of(run, 1), 0) / MANIFEST
    manifest.write_text(manifest.read_text().replace(",\n", ", \n", 1))
    with pytest.raises(DamagedError, match=MANIFEST):
        checkpoint.verify(manifest.parent)


def test_no_malformed_checkpoint_raises_anything_else(run: RunConfig, tmp_path: Path) -> None:
    draw = random.Random(0)
    good = checkpoint.write(tmp_path, checkpoint_of(run, 1), 0)
    refused = 0
    for number in range(300):
        path = tmp_path / f"checkpoint-{number + 2}"
        shutil.copytree(good, path)
        file = path / draw.choice(sorted(p.name for p in good.iterdir()))
        content = bytearray(file.read_bytes())
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(content))
            content[place : place + draw.choice([0, 1, 40])] = draw.randbytes(draw.choice([0, 1, 9]))
            content = content or bytearray(b" ")
        if draw.random() < 0.2:
            content = bytearray(draw.choice([b"", b"null", b"[]", b"{}", b"[" * 10**5, b'{"files": 3}']))
        file.write_bytes(content)
        if content == (good / file.name).read_bytes():
            continue
        with pytest.raises(UserError) as refusal:
            checkpoint.find(str(path), tmp_path)
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
        refused += 1
        shutil.rmtree(path)
    assert refused > 280


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"rms_norm_eps": 1e-5}, ["rms_norm_eps 1e-06", "has 1e-05"]),
        ({"hidden_act": "gelu"}, ["hidden_act 'silu'", "has 'gelu'"]),
        ({"attention_dropout": 0.1}, ["attention_dropout 0.0", "has 0.1"]),
        ({"rope_theta": 5e5}, ["rope_parameters.rope_theta 10000.0", "has 500000.0"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["rope_parameters.factor None", "has 2.0"]),
        ({"max_position_embeddings": 256}, ["max_position_embeddings 128", "has 256"]),
    ],
)
def test_another_configuration_of_the_base_is_refused_by_field_and_values(
    change: dict[str, Any], parts: list[str], run: RunConfig, tmp_path: Path
) -> None:
    before, after = tiny.config(), read_again(tiny.config(), tmp_path, change)
    written = checkpoint_of(run, 1)
    written.base = decisive(before)
    checkpoint.write(tmp_path, written, 0)
    saved = checkpoint.find(LAST, tmp_path)
    assert saved is not None
    saved.check_base(decisive(read_again(before, tmp_path, {})))
    with pytest.raises(UserError) as refusal:
        saved.check_base(decisive(after))
    assert [part for part in ["checkpoint-1", *parts] if part not in str(refusal.value)] == [], refusal.value


def read_again(config: PretrainedConfig, folder: Path, change: dict[str, Any]) -> PretrainedConfig:
    """A configuration with changes, as it comes from a config.json."""
    values = config.to_dict()
    if "rope_theta" in change or "rope_scaling" in change:
        # as older models have it
        values.pop("rope_parameters")
        values["rope_theta"] = 1e4
    (folder / "config.json").write_text(json.dumps(values | change), encoding="utf8")
    return AutoConfig.from_pretrained(folder)


def test_fields_that_change_no_function_may_differ(tmp_path: Path) -> None:
    names = {"_name_or_path": "elsewhere", "transformers_version": "4.0", "use_cache": False, "dtype": "bfloat16"}
    again = read_again(tiny.config(), tmp_path, {**names, "architectures": ["Other"], "initializer_range": 1.0})
    assert first_difference(decisive(tiny.config()), decisive(again)) is None


def test_a_checkpoint_of_an_older_format_is_refused_in_a_line_that_says_so(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_manifest, "FORMAT", 4)
    path = checkpoint.write(tmp_path, checkpoint_of(run, 1), 0)
    monkeypatch.undo()
    refused = rf"checkpoint-1 has format 4, this version reads {checkpoint_manifest.FORMAT}\. Resume it"
    with pytest.raises(UserError, match=refused):
        checkpoint.find(str(path), tmp_path)


def test_another_run_is_refused_in_one_line(run: RunConfig) -> None:
    saved = checkpoint_of(run, 1)
    free = {"save_steps": 7, "logging_steps": 9, "deepspeed": "x", "output_dir": "y", "per_device_train_batch_size": 1}
    saved.check(run.replace(**free), COUNTS, PRINTS)
    for change in ({"sparsity": 0.4}, {"seed": 5}, {"learning_rate": 1.0}, {"bf16": False}, {"rank": 9}):
        with pytest.raises(UserError, match=f"--{next(iter(change))} "):
            saved.check(run.replace(**change), COUNTS, PRINTS)
    with pytest.raises(UserError, match=r"processes x --per_device_train_batch_size.* made 8, this run makes 4"):
        saved.check(run, COUNTS | {"global_batch": 4}, PRINTS)
    with pytest.raises(UserError, match="--max_steps"):
        saved.check(run, COUNTS | {"total_steps": 4}, PRINTS)
    for name, words in (("train", "training data"), ("model", "base model"), ("corpus", "--perplexity_path")):
        with pytest.raises(UserError, match=words):
            saved.check(run, COUNTS, PRINTS | {name: "other"})


def test_a_checkpoint_without_a_hash_of_mmlu_goes_on_without_mmlu(run: RunConfig) -> None:
    """As earlier versions wrote it."""
    saved = checkpoint_of(run, 1)
    saved.check(run, COUNTS, PRINTS | {"mmlu": ""})
    refused = "does not record the set of questions of --mmlu_path and --mmlu_limit: resume without it"
    with pytest.raises(UserError, match=refused):
        saved.check(run, COUNTS, PRINTS | {"mmlu": "m"})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with small_disk(tmp_path / "disk", 64 << 10) as place:
        yield place


def test_a_full_disk_leaves_earlier_checkpoints_alone(run: RunConfig, disk: Path) -> None:
    checkpoint.write(disk, checkpoint_of(run, 1), 1)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*checkpoint-2: No space left"):
        checkpoint.write(disk, checkpoint_of(run, 2), 1)
    assert [path.name for path in disk.iterdir()] == ["checkpoint-1"]
    checkpoint.verify(disk / "checkpoint-1")


def test_a_file_size_limit_does_the_same(run: RunConfig, tmp_path: Path) -> None:
    checkpoint.write(tmp_path, checkpoint_of(run, 1), 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the checkpoint .*checkpoint-2: .*File too large"):
            checkpoint.write(tmp_path, checkpoint_of(run, 2), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_what_an_interrupted_save_left_is_swept(run: RunConfig, tmp_path: Path) -> None:
    checkpoint.write(tmp_path, checkpoint_of(run, 1), 0)
    (tmp_path / "checkpoint-2.tmp").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()
    checkpoint.sweep(tmp_path, everything=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-notes"]
    checkpoint.sweep(tmp_path, everything=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-notes"]


def test_a_fingerprint_sees_every_weight_and_where_it_is() -> None:
    model = tiny.model()
    before = fingerprint.fingerprint(model)
    assert fingerprint.fingerprint(tiny.model()) == before
    weight = model.model.layers[1].mlp.up_proj.weight.data
    weight[[3, 7]] = weight[[7, 3]]
    swapped = fingerprint.fingerprint(model)
    weight[[3, 7]] = weight[[7, 3]]
    assert fingerprint.fingerprint(model) == before != swapped
    weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(9.0))
    assert fingerprint.fingerprint(model) not in (before, swapped)
    assert fingerprint.fingerprint(tiny.model().bfloat16()) != before


def test_a_manifest_is_json_that_people_can_read(run: RunConfig, tmp_path: Path) -> None:
    manifest = json.loads((checkpoint.write(tmp_path, checkpoint_of(run, 1), 0) / MANIFEST).read_text())
    assert manifest["step"] == 1 and manifest["versions"].keys() == {"torch", "deepspeed", "transformers"}
    assert manifest["run"]["sparsity"] == run.pruning.sparsity and set(manifest["files"]) >= {
        "state.json",
        "metrics.jsonl",
    }
