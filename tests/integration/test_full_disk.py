"""A disk that is full, a file that may not grow: one line, and nothing half written."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.models import loading
from apt_ds.runtime.files import write_json
from tests.support import tiny
from tests.support.launcher import PRETUNING, Place, launch, start
from tests.support.paths import ROOT
from tests.support.small_disk import small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts an empty file system of so many bytes."""
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(small_disk(tmp_path / "disk", size))


@pytest.mark.dist
@pytest.mark.parametrize("early", [True, False])
def test_a_full_disk_ends_all_processes_and_leaves_no_model(
    early: bool, place: Place, disk: Callable[[int], Path], tmp_path: Path
) -> None:
    tiny.save_model(place.folder / "larger", vocab_size=2000)
    output = tmp_path / "disk" / "out"
    words = place.words(output, "--model_name_or_path", str(place.folder / "larger"), *PRETUNING)
    wanted = resolve([*words, "--deepspeed", str(ROOT / "ds_configs" / "zero2.json")])
    needed = loading.bytes_written(loading.find_base(wanted.model.model_name_or_path), wanted)
    # late: the weights alone would fit, but not beside logs, configuration and tokenizer
    disk(needed // 2 if early else (needed // 4096 + 2) * 4096)
    ended = start(2, words) if early else launch(2, words)
    assert ended.status == 2 and "Traceback" not in ended.err, ended.err
    if early:
        # no launcher ends the second rank, which says the same
        assert [line.count("MB free under") for line in ended.mistakes] == [1, 1] and not output.exists()
    else:
        assert len(ended.mistakes) == 1, ended.err
        assert "cannot write the model to" in ended.mistakes[0] and "No space left" in ended.mistakes[0], ended.err
        assert sorted(path.name for path in output.iterdir()) == ["checkpoint-8", "config.yaml", "metrics.jsonl"]


def test_a_summary_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "summary.json.tmp").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*summary.json"):
        write_json(tmp_path / "summary.json", {})


def test_a_summary_cut_short_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_json(tmp_path / "summary.json", {"before": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*summary.json: File too large"):
            write_json(tmp_path / "summary.json", {"after": "x" * 10_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf8")) == {"before": 1}
