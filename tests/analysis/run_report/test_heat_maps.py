"""Heat maps of a run report."""

from __future__ import annotations

from dataclasses import replace

from apt_ds.analysis.run_report.heat_maps import by_layer_and_target, heat_maps
from tests.support.report_content import finished, interrupted


def test_kept_blocks_are_shown_by_layer_and_time() -> None:
    heads, neurons, ranks = heat_maps(finished())
    assert [figure.name for figure in (heads, neurons)] == ["Kept heads by layer", "Kept neurons by layer"]
    (cells,) = neurons.data
    assert (cells["x"], cells["y"]) == (["base", "step 3"], ["0", "1"])
    assert cells["z"] == [[100, 50], [100, 60]] and cells["text"] == [[10, 5], [10, 6]]
    assert heads.data[0]["z"] == [[100, 100], [100, 50]]
    assert (ranks.data[0]["x"], ranks.data[0]["z"]) == (["q_proj", "v_proj", "down"], [[2, 2, 2], [4, 4, 4]])


def test_what_the_files_do_not_hold_has_no_map() -> None:
    nothing = replace(interrupted(), metrics=[], manifest={})
    assert heat_maps(nothing) == []
    assert [figure.name for figure in heat_maps(interrupted())][-1] == "Ranks of the adapters at the last checkpoint"


def test_two_stacks_have_rows_of_their_own() -> None:
    paths = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.1.EncDecAttention.q"]
    paths += ["decoder.block.0.layer.0.SelfAttention.q"]
    rows, columns, table = by_layer_and_target(dict(zip(paths, (1, 2, 3), strict=True)))
    assert rows == ["encoder 0", "decoder 0"]
    # one name would stand for two projections of a layer
    assert columns == ["layer.0.SelfAttention.q", "layer.1.EncDecAttention.q"] and table == [[1, None], [3, 2]]


def test_a_path_without_a_layer_is_a_row_of_its_own() -> None:
    assert by_layer_and_target({"score": 4}) == (["score"], ["score"], [[4]])
