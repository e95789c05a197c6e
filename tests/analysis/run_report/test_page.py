"""The report of a real run, in a browser: it renders without an error, its numbers are those of the files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from apt_ds.analysis.run_report import page
from apt_ds.analysis.run_report.content import read
from apt_ds.analysis.run_report.spec import Figure
from apt_ds.analysis.run_report.writing import write
from tests.support import report_content
from tests.support.browser import probe
from tests.support.launcher import GRADUAL, Place, own_world, start

pytest.importorskip("plotly")
EVIL = "</script><script>throw new Error('ran')</script><img src=x onerror=alert(1)>"
LOOK = """() => {
  const cells = [...document.querySelectorAll("td[data-key]")];
  const plots = [...document.querySelectorAll(".plot")];
  const read = (table) => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
  const table = document.querySelector("table.sortable");
  const headers = [...table.tHead.rows[0].cells];
  const original = read(table), sorted = [], states = [];
  const column = headers.findIndex((header) => header.textContent.startsWith("after"));
  for (let click = 0; click < 3; click++) {
    headers[column].querySelector("button").click();
    states.push(headers.map((header) => header.getAttribute("aria-sort")));
    sorted.push([...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value));
  }
  const last = read(table);
  headers[0].querySelector("button").focus();
  return {
    cells: cells.map((cell) => [cell.dataset.key, cell.dataset.value, cell.textContent]),
    drawn: plots.map((plot) => plot.querySelectorAll(".main-svg").length),
    titles: plots.map((plot) => [...plot.querySelectorAll(".xtitle, .ytitle, .cbtitle")].map((t) => t.textContent)),
    traces: plots.map((plot) => plot.data.map((trace) => [trace.x, trace.y])),
    names: plots.map((plot) => plot.getAttribute("aria-label")),
    original, sorted, states, last, column,
    focused: document.activeElement.tagName,
    wide: document.documentElement.scrollWidth > window.innerWidth,
    samples: [...document.querySelectorAll(".sample h3, .sample dd")].map((each) => each.textContent),
    excluded: [...document.querySelectorAll("#consumers li")].map((each) => each.textContent),
    headings: [...document.querySelectorAll("h2")].map((each) => each.textContent),
    ink: getComputedStyle(document.body).color, font: plots[0].layout.font.color,
  };
}"""
THEMES = """() => {
  const plot = document.querySelector(".plot");
  const look = () => [getComputedStyle(document.body).backgroundColor, plot.layout.font.color];
  const screen = look();
  window.dispatchEvent(new Event("beforeprint"));
  const paper = look(), open = [...document.querySelectorAll("details")].every((each) => each.open);
  window.dispatchEvent(new Event("afterprint"));
  return {screen, paper, open, after: look(), status: document.querySelector("[role=status]").textContent};
}"""


@pytest.fixture(scope="module")
def folder(place: Place) -> Iterator[Path]:
    """The output folder of a run that prunes gradually. One of its answers is markup."""
    output = place.folder / "out"
    flags = [*GRADUAL, "--structure", "adaptive", "--report", "true", "--profile", "--save_steps", "4"]
    # in a process of its own: what other tests have freed would hide the memory of so small a model
    ended = start(1, place.words(output, *flags))
    assert ended.status == 0, ended.err
    with own_world():
        summary = json.loads((output / "summary.json").read_text(encoding="utf8"))
        summary["samples"][0]["after"] = EVIL
        (output / "summary.json").write_text(json.dumps(summary), encoding="utf8")
        yield output


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf8"))


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    """What a browser sees in the report."""
    return probe(write(folder), LOOK)


def at(summary: dict[str, Any], key: str) -> Any:
    """The value of a key with dots. Lists are counted from 0."""
    value: Any = summary
    for name in key.split("."):
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value


def test_numbers_are_those_of_the_summary(seen: dict[str, Any], summary: dict[str, Any]) -> None:
    keys = {key for key, _, _ in seen["cells"]}
    for key, value, text in seen["cells"]:
        assert float(value) == at(summary, key), key
        assert text not in ("", "-"), key
    for when in ("before", "after"):
        shown = {key.partition(".")[2] for key in keys if key.startswith(f"{when}.")}
        assert summary[when].keys() - shown == {
            *("generated_tokens_per_second", "peak_memory_bytes", "peak_reserved_bytes")
        }
    assert {"training.steps_seconds", "profile.cut.seconds.forward", "pruning.layers.after.neurons.0"} <= keys


def test_every_figure_is_drawn_with_titles_and_the_numbers_of_the_run(seen: dict[str, Any], folder: Path) -> None:
    assert set(seen["drawn"]) == {3} and len(set(seen["names"])) == len(seen["names"])
    untitled = [name for name, titles in zip(seen["names"], seen["titles"], strict=True) if not any(titles)]
    assert untitled == []
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    traces = dict(zip(seen["names"], seen["traces"], strict=True))
    assert traces["Loss"][0] == [[line["step"] for line in lines], [line["loss"] for line in lines]]
    assert traces["Learning rate"][0][1] == [line["learning_rate"] for line in lines]
    assert {"Kept heads by layer", "Kept neurons by layer", "Final ranks of the adapters"} <= traces.keys()


def test_a_click_sorts_a_table(seen: dict[str, Any]) -> None:
    column, (up, down, back) = seen["column"], seen["states"]
    assert (up[column], down[column], back[column]) == ("ascending", "descending", "none")
    assert {state for number, state in enumerate(up) if number != column} == {"none"}
    values = [float(value) for value in seen["sorted"][0]]
    assert values == sorted(values) and [float(value) for value in seen["sorted"][1]] == values[::-1]
    assert seen["last"] == seen["original"] and values != [float(value) for value in seen["sorted"][2]]
    # the keyboard reaches what the mouse does
    assert seen["focused"] == "BUTTON"


def test_answers_are_text_whatever_they_hold(seen: dict[str, Any], summary: dict[str, Any]) -> None:
    (sample,) = summary["samples"]
    assert seen["samples"] == [sample["question"], sample["before"], EVIL]


def test_sections_come_in_the_order_in_which_people_ask(seen: dict[str, Any]) -> None:
    assert seen["headings"] == [
        *("Before and after", "Training", "Kept blocks and ranks by layer", "Consumers of the written model"),
        *("Time", "Memory", "Samples before and after", "Configuration", "Warnings"),
    ]
    assert not seen["wide"] and seen["ink"] == "rgb(28, 33, 40)" and seen["font"] == "#1c2128"


def test_the_page_names_consumers_that_the_kept_sizes_exclude(seen: dict[str, Any], summary: dict[str, Any]) -> None:
    assert seen["excluded"] == summary["pruning"]["excluded"]
    assert any("sizes by layer are not supported" in line for line in seen["excluded"])
    notes = []
    for content in (
        report_content.finished(),
        replace(report_content.finished(), summary=with_excluded([])),
        report_content.interrupted(),
    ):
        (section,) = [section for section in page.sections(content) if section.id == "consumers"]
        assert section.items == []
        notes += section.notes
    assert notes == [
        "A run of an earlier version did not record the consumers that its sizes exclude.",
        "No consumer of the base model is excluded by the kept sizes.",
        "The written sizes exist once a run has finished.",
    ]


def with_excluded(lines: list[str]) -> dict[str, Any]:
    """A summary with the consumers that the kept sizes exclude."""
    summary = report_content.summary()
    summary["pruning"]["excluded"] = lines
    return summary


def test_an_unfinished_run_is_readable_in_the_dark_and_on_paper(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out", ignore=shutil.ignore_patterns("model", "summary.json", "*.html"))
    page = probe(write(tmp_path / "out"), THEMES, "--blink-settings=preferredColorScheme=0")
    assert "The last logged step is 8 of 8" in page["status"] and "newest checkpoint is of step 8" in page["status"]
    assert page["screen"] == ["rgb(20, 24, 29)", "#e6eaef"] == page["after"]
    assert page["paper"][1] == "#1c2128" and page["open"]


class References(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note `src` and `href`."""
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]


def test_the_page_refers_to_nothing_outside(folder: Path) -> None:
    text = write(folder).read_text(encoding="utf8")
    parser = References()
    parser.feed(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert {value for value in parser.found if not value.startswith("#")} == {"data:,"}
    assert "default-src 'none'" in text and text.count("plotly.js v") == 1


def test_plotly_knows_every_attribute_of_the_figures(folder: Path) -> None:
    import plotly.graph_objects as go

    figures = [b for section in page.sections(read(folder)) for b in section.blocks if isinstance(b, Figure)]
    assert len(figures) >= 12
    theme = {"@paper": "white", "@ink": "black", "@muted": "gray", "@grid": "gray"}
    theme |= dict.fromkeys(("@first", "@second", "@third"), "blue")
    for figure in figures:
        text = json.dumps(figure.spec())
        for name, colour in theme.items():
            text = text.replace(f'"{name}"', f'"{colour}"')
        assert "@" not in text
        go.Figure(json.loads(text))
