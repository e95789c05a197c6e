"""The tables of a run report."""

from __future__ import annotations

from dataclasses import replace

from apt_ds.analysis.run_report import tables
from tests.support.report_content import finished, interrupted, metrics


def texts(table: tables.Table | None) -> list[list[str]]:
    assert table is not None
    return [[cell.text for cell in row] for row in table.rows]


def test_the_first_table_has_the_figures_of_the_summary() -> None:
    content = finished()
    table = tables.before_after(content)
    assert table.columns == ["question", "figure", "before", "after", "ratio"]
    by_figure = {row[1].text: row for row in table.rows}
    memory = by_figure["peak memory, MB"]
    assert [cell.text for cell in memory[2:]] == ["4", "1", "0.250"]
    # the value is that of the summary, whatever the text rounds
    assert (memory[2].value, memory[2].key) == (4_000_000, "before.peak_added_bytes")
    assert [cell.repeats for cell in (row[0] for row in table.rows)][:3] == [False, True, False]


def test_several_texts_have_a_row_each_and_no_key() -> None:
    content = finished()
    assert content.summary is not None
    values = {"before": 10.0, "after": 12.5}
    texts_of = {when: {"corpus_perplexities": {"a.txt[50%:]": value}} for when, value in values.items()}
    changed = {when: content.summary[when] | more for when, more in texts_of.items()}  # type: ignore[literal-required]
    table = tables.before_after(replace(content, summary=content.summary | changed))
    (row,) = [row for row in table.rows if row[1].text == "perplexity, a.txt[50%:]"]
    assert [(cell.text, cell.value, cell.key) for cell in row[2:4]] == [("10.00", 10.0, ""), ("12.50", 12.5, "")]


def test_an_unfinished_run_shows_how_far_it_came() -> None:
    table = tables.before_after(interrupted())
    assert table.columns == ["figure", "step 1", "step 4", "ratio"]
    assert ["loss", "2.000", "1.000", "0.500"] in texts(table)
    assert tables.before_after(replace(interrupted(), metrics=[])).rows == []
    skipped = replace(interrupted(), metrics=metrics()[:2])
    assert ["loss", "2.000", "-", "-"] in texts(tables.before_after(skipped))


def test_tiles_say_how_the_model_changed() -> None:
    tiles = {tile.label: (tile.text, tile.detail) for tile in tables.tiles(finished())}
    assert tiles["of the parameters"] == ("60.0 %", "1,000 → 600")
    assert tiles["the speed of decoding"] == ("1.67x", "10.0 → 16.7 tokens per second")
    assert tiles["held-out loss"] == ("+0.500", "2.000 → 2.500")
    assert tiles["of the training memory"] == ("25.0 %", "4 → 1 MB")
    assert "the speed of prefill" not in tiles and tables.tiles(interrupted()) == []


def test_times_have_their_share_of_the_run_and_of_a_step() -> None:
    run = tables.run_times(finished())
    assert ["steps", "2.00", "50.0"] in texts(run) and ["evaluation", "1.00", "25.0"] in texts(run)
    assert ["steps", "2.00", "57.1"] in texts(tables.run_times(interrupted()))
    step = tables.step_times(finished())
    assert step is not None and step.columns[1:] == ["dense, ms", "dense, %", "cut, ms", "cut, %"]
    assert ["backward", "300.00", "60.0", "300.00", "60.0"] in texts(step)
    assert tables.step_times(interrupted()) is None


def test_memory_and_layers_have_rows_where_the_files_have_them() -> None:
    assert texts(tables.memory(finished())) == [["loading the model", "2"], ["steps at the final size", "1"]]
    assert tables.memory(interrupted()) is None
    layers = tables.layers(finished())
    assert layers is not None and layers.columns[1:3] == ["heads before", "heads after"]
    assert texts(layers) == [["0", "4", "4", "10", "5"], ["1", "4", "2", "10", "6"]]
    assert layers.rows[1][2].key == "pruning.layers.after.heads.1"
    # without a summary no key points into it
    assert {cell.key for row in (tables.layers(interrupted()) or layers).rows for cell in row} == {""}


def test_stacks_of_different_depth_leave_gaps() -> None:
    sizes = {"hidden": 8, "heads": [4, 4, 4], "neurons": [8, 8]}
    lines = [metrics()[0] | {"sizes_before": sizes, "sizes": sizes}]
    assert texts(tables.layers(replace(interrupted(), metrics=lines)))[2] == ["2", "4", "4", "-", "-"]


def test_options_that_differ_come_apart() -> None:
    content = replace(finished(), config={"bf16": True, "fp16": False, "run_name_of_a_later_version": ""})
    changed = texts(tables.changed_options(content))
    assert changed == [["--bf16", "true"], ["--run_name_of_a_later_version", "(empty)"]]
    assert ["--fp16", "false"] in texts(tables.all_options(content))
    assert texts(tables.environment(content))[1:] == [["processes", "2"], ["torch", "2"]]
    assert tables.environment(interrupted()) is None
