"""Ranks that differ are named before anything is written."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import OpBuilder

from apt_ds.config.errors import UserError
from apt_ds.models import loading
from apt_ds.runtime import zero
from apt_ds.training import preflight, prepared_data
from tests.support import multiprocess, tiny
from tests.support.launcher import Place, caller, own_world
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nodes' worth of files: what rank 1 finds under `other` differs."""
    place = tmp_path_factory.mktemp("preflight")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    (place / "other").mkdir()
    tiny.save_model(place / "other" / "model", seed=1)
    tiny.save_data(place / "other" / "data.json", seed=1)
    return place


@pytest.mark.dist
@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ("data", "fingerprint of the train data"),
        ("model", "model file model.safetensors"),
        ("flag", "--sparsity"),
        ("config", "DeepSpeed config zero_optimization.stage"),
        ("version", "version of transformers"),
    ],
)
def test_the_rank_that_differs_is_named_and_all_end(change: str, fact: str, folder: Path) -> None:
    with pytest.raises(multiprocess.WorldFailedError) as failure:
        multiprocess.run(3, "mistake_jobs.differing", {"folder": str(folder), "odd": 1, "change": change}, timeout=120)
    ended = failure.value
    assert ended.statuses == [2, 2, 2], ended.text
    errors = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "Traceback" not in ended.text, ended.text
    assert all(f"ranks differ in {fact}: rank 1 on " in line for line in errors), errors
    assert not (folder / "out_3").exists()


@pytest.mark.dist
def test_each_node_tokenizes_once(folder: Path) -> None:
    assert multiprocess.run(3, "data_jobs.tokenized_once", {"folder": str(folder)}, timeout=120) == [1, 0, 1]


def test_a_file_that_changed_in_the_middle_of_nowhere_shows_by_its_ends(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(3 << 20))
    before = preflight.model_files(tmp_path)
    for place in (0, (3 << 20) - 1):
        content = bytearray(3 << 20)
        content[place] = 1
        file.write_bytes(content)
        assert preflight.model_files(tmp_path) != before
    file.write_bytes(bytes((3 << 20) + 1))
    assert preflight.model_files(tmp_path) != before
    (tmp_path / "notes.txt").write_text("not the model's")
    assert list(preflight.model_files(tmp_path)) == ["model file model.safetensors"]


def test_too_little_room_is_one_line(tmp_path: Path) -> None:
    preflight.check_room(tmp_path / "a" / "b", 1)
    with pytest.raises(UserError, match=r"rank 0 on .* MB free under .*, the run writes about 1,000,000,000,000 MB"):
        preflight.check_room(tmp_path / "a" / "b", 10**18)


def test_without_a_compiler_an_offload_ends_before_anything_is_read(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_world():
        # on the CPU DeepSpeed compiles something here
        zero.init_distributed()
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "ninja").symlink_to(str(shutil.which("ninja")))
        monkeypatch.setenv("PATH", str(programs))
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
        monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
        for module, name in ((loading, "load_model"), (prepared_data, "prepare")):
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was read"))
        words = place.words(tmp_path / "out", deepspeed=ROOT / "ds_configs" / "zero2_offload.json")
        ended = caller(capfd, monkeypatch)(words)
    assert ended.status == 2 and "Traceback" not in ended.err
    (line,) = ended.mistakes
    assert f"{socket.gethostname()}: DeepSpeed compiles its optimizer (cpu_adam)" in line
    assert "a C++ compiler (no 'c++' on PATH" in line and "ninja (" not in line
    assert not (tmp_path / "out").exists()
