"""Data sets of a run: read once a node, opened by its other ranks, and split into parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.prepared import Prepared
from apt_ds.data.tokenized import columns_of
from apt_ds.training import prepared_data
from tests.support import multiprocess
from tests.support.launcher import Place

ROWS = [{"input_ids": [number, 5], "labels": [-100, 5]} for number in range(9)]


def data() -> Prepared[str]:
    """Nine examples in memory, of which training does not see one."""
    trained = np.arange(9) != 4
    return Prepared([f"example {number}" for number in range(9)], columns_of(ROWS), trained, "name")


def test_parts_have_their_examples_and_rows() -> None:
    run = RunConfig().replace(eval_size=3)
    train, held_out = prepared_data.split(run, data())
    assert sorted([*train.numbers, *held_out.numbers]) == list(range(9)) and len(held_out.numbers) == 3
    assert train.examples() == [f"example {number}" for number in train.numbers]
    sets = train.tokenized(), held_out.tokenized()
    assert sum(part.dropped for part in sets) == 1 and sum(map(len, sets)) == 8
    assert [row["input_ids"][0] for row in sets[1]] == [number for number in held_out.numbers if number != 4]
    assert len(prepared_data.whole(data()).examples()) == 9 and len(prepared_data.whole(data(), 2).examples()) == 2
    with pytest.raises(UserError, match="cannot hold out 9 of 9"):
        prepared_data.split(run.replace(eval_size=9), data())


@pytest.mark.dist
@pytest.mark.parametrize("writable", [True, False])
def test_ranks_of_a_node_open_what_the_first_made(writable: bool, place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", "utf-8")
    cache = tmp_path / ("cache" if writable else "file")
    given = {"folder": str(place.folder), "cache": str(cache)}
    first, second = multiprocess.run(2, "data_jobs.shared_cache", given, timeout=120)
    assert (first[0], second[0]) == (1, 0) and first[1:] == second[1:] and first[2]
    assert all("data.json, record " in where for where in first[5])
    if writable:
        again = multiprocess.run(2, "data_jobs.shared_cache", given, timeout=120)
        assert [rank[0] for rank in again] == [0, 0] and again[0][1:] == first[1:]


@pytest.mark.dist
def test_a_node_may_have_files_where_another_has_memory(place: Place) -> None:
    """All ranks call the same collectives. The preflight then compares the fingerprints."""
    first, second = multiprocess.run(2, "data_jobs.unlike_nodes", {"folder": str(place.folder)}, timeout=120)
    assert first == second
