"""The table of a comparison for readers: columns, notes, files, and its place in a document."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apt_ds.analysis.plots import quality_against_speed
from apt_ds.config import cli
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import OPTIONS
from apt_ds.runtime.files import write_json

Row = dict[str, Any]
Form = Callable[[float], str]

REFERENCES = {"full": "full fine-tuning", "lora": "LoRA without pruning"}
ABSENT = "-"


def fixed(digits: int, scale: float = 1.0) -> Form:
    """A number times `scale` with so many decimals."""
    return lambda value: f"{value * scale:,.{digits}f}"


# name: header and format. {ref}, {metric} and {batch} are filled in
COLUMNS: dict[str, tuple[str, Form]] = {
    "method": ("method", str),
    "removed": ("parameters removed, %", fixed(1, 100)),
    "seeds": ("seeds", fixed(0)),
    "perplexity_cut": ("perplexity{text} after the cut", fixed(1)),
    "held_out_loss_cut": ("held-out loss after the cut", fixed(3)),
    "perplexity": ("perplexity{text}", fixed(1)),
    "held_out_loss": ("held-out loss", fixed(3)),
    "relative_perplexity": ("perplexity, % of {ref}", fixed(1, 100)),
    "mmlu": ("MMLU accuracy, %", fixed(1, 100)),
    "dev_score": ("{metric}, %", fixed(1)),
    "best_f1": ("F1 at its best threshold, %", fixed(1)),
    "exact": ("exact match, %", fixed(1)),
    "best_exact": ("exact match at its best threshold, %", fixed(1)),
    "relative_score": ("relative {metric}, % of {ref}", fixed(1, 100)),
    "near_steps": ("steps to 97 % of the best score of {ref}", fixed(0)),
    "near_time": ("time to that score, % of {ref}", fixed(0, 100)),
    "train_time": ("training time, % of {ref}", fixed(1, 100)),
    "train_memory": ("peak training memory, % of {ref}", fixed(1, 100)),
    "final_step_time": ("step at final size, % of {ref}", fixed(1, 100)),
    "final_memory": ("peak memory at final size, % of {ref}", fixed(1, 100)),
    "inference_speed": ("inference speed, times {ref}", fixed(2)),
    "inference_memory": ("inference memory, % of {ref}", fixed(1, 100)),
    "batch_speed": ("inference speed at batch {batch}, times {ref}", fixed(2)),
    "batch_memory": ("inference memory at batch {batch}, % of {ref}", fixed(1, 100)),
}
# figures of the reference. Without a reference they are shown for every row
ABSOLUTE: dict[str, tuple[str, Form]] = {
    "whole_seconds": ("training time, s", fixed(1)),
    "whole_bytes": ("peak training memory, MB", fixed(0, 1e-6)),
    "step_seconds": ("step at final size, s", fixed(3)),
    "final_bytes": ("peak memory at final size, MB", fixed(0, 1e-6)),
    "sequences_per_second": ("inference speed, sequences/s", fixed(1)),
    "decode_tokens_per_second": ("inference speed, tokens/s", fixed(1)),
    "inference_bytes": ("inference memory, MB", fixed(0, 1e-6)),
    "inference_batch_tokens_per_second": ("inference speed at batch {batch}, tokens/s", fixed(1)),
    "inference_batch_bytes": ("inference memory at batch {batch}, MB", fixed(0, 1e-6)),
}
NOTES = (
    "Training time is that of all steps, scoring and rebuilds; evaluation, loading and saving are left out. "
    "Peak training memory is the largest of the whole run, all engines and rebuilds. "
    "Figures at final size are of the steps after the last rebuild, `-` where no step came after it. "
    "Quality is the mean over seeds, time the median and memory the maximum.",
    "The best thresholds are chosen on the evaluation set itself; the plain scores use none.",
)


def varied(row: Row) -> list[str]:
    """Which of a row's keys are options that the comparison varies."""
    return [name for name in row if name in OPTIONS and name not in COLUMNS]


def columns(rows: list[Row]) -> dict[str, tuple[str, Form]]:
    """The columns that some row fills, by name, with their headers filled in. `seeds` only where rows differ."""
    reference = rows[0].get("reference")
    every = with_names(rows) | ({} if reference else ABSOLUTE)
    shown = [name for name in every if any(row.get(name) is not None for row in rows)]
    if len({row.get("seeds") for row in rows}) < 2:
        shown = [name for name in shown if name != "seeds"]
    shown[2:2] = dict.fromkeys(name for row in rows for name in varied(row))
    words = fillings(rows)
    return {n: (every[n][0].format(**words), every[n][1]) if n in every else (n, str) for n in shown}


# what a column of rows with names begins with: header, format, and the column that it follows
NAMED: dict[str, tuple[str, Form, str]] = {
    "perplexity_cut": ("perplexity of {name} after the cut", fixed(1), "perplexity_cut"),
    "perplexity": ("perplexity of {name}", fixed(1), "perplexity"),
    "local": ("{name} accuracy, %", fixed(1, 100), "mmlu"),
    "likelihood": ("{name} log-likelihood", fixed(2), "mmlu"),
}


def with_names(rows: list[Row]) -> dict[str, tuple[str, Form]]:
    """`COLUMNS` with one more for each further text and each task, behind the columns that these are like."""
    keys = dict.fromkeys(key for row in rows for key in row if not key.endswith("_std"))
    named = [(kind, name) for kind, colon, name in (key.partition(":") for key in keys) if colon and kind in NAMED]
    every: dict[str, tuple[str, Form]] = {}
    for column, shown in COLUMNS.items():
        every[column] = shown
        for kind, name in named:
            if NAMED[kind][2] == column:
                # the name of a text may hold braces, which headers fill in
                header = named_header(rows, kind, name).replace("{", "{{").replace("}", "}}")
                every[f"{kind}:{name}"] = (header, NAMED[kind][1])
    return every


def named_header(rows: list[Row], kind: str, name: str) -> str:
    """The header of the column `kind:name`. That of a task says what chance is."""
    if kind not in ("local", "likelihood"):
        return NAMED[kind][0].format(name=name)
    header = NAMED[kind][0].format(name=name.replace("_", " "))
    chance = next((row[f"chance:{name}"] for row in rows if row.get(f"chance:{name}") is not None), None)
    return header if kind == "likelihood" or chance is None else f"{header} (chance {100 * chance:.0f})"


def fillings(rows: list[Row]) -> dict[str, Any]:
    """What headers name: the reference, the score and the batch size of inference."""
    metric = rows[0].get("metric") or ("MMLU accuracy" if rows[0].get("mmlu") is not None else "score")
    text = f" of {rows[0]['text']}" if rows[0].get("text") else ""
    words = {"ref": rows[0].get("reference"), "metric": metric, "batch": rows[0].get("inference_batch_size")}
    return words | {"text": text}


def cell(row: Row, name: str, form: Form) -> str:
    """One cell: a figure, with its deviation over seeds if there is one."""
    value = row.get(name)
    if value is None:
        return ABSENT
    spread = row.get(f"{name}_std")
    return form(value) + (f" ± {form(spread)}" if spread is not None else "")


def markdown(rows: list[Row]) -> str:
    """The table. It has no column that no row fills, and `-` where a figure is absent."""
    shown = columns(rows)
    lines = ["| " + " | ".join(head for head, _ in shown.values()) + " |", "|---" * len(shown) + "|"]
    lines += ["| " + " | ".join(cell(row, name, form) for name, (_, form) in shown.items()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def notes(rows: list[Row]) -> str:
    """What the columns mean, and the figures of the reference that are 100 %."""
    lines = [NOTES[0], *(NOTES[1:] if any(row.get("best_f1") is not None for row in rows) else ())]
    base = next((row for row in rows if row.get("reference") and row["method"] == row["reference"]), None)
    if base is not None:
        words = fillings(rows)
        known = {name: column for name, column in ABSOLUTE.items() if base.get(name) is not None}
        figures = (f"{head.format(**words)} {form(base[name])}" for name, (head, form) in known.items())
        lines.append(f"100 % is `{words['ref']}`, {REFERENCES[words['ref']]}: {'; '.join(figures)}.")
    return "\n\n".join(lines) + "\n"


def publish(rows: list[Row], folder: Path) -> None:
    """Write table.csv, table.json (all figures), table.md, and table.png where it can be drawn; print the table."""
    with (folder / "table.csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / "table.json", rows)
    text = f"{markdown(rows)}\n{notes(rows)}"
    (folder / "table.md").write_text(text, encoding="utf8")
    print(text, flush=True)
    points = [row for row in rows if drawable(row)]
    if not points:
        return
    try:
        quality_against_speed(points, folder / "table.png")
    except ModuleNotFoundError as error:
        print(f"table.png is not drawn, since it requires {error.name}: pip install 'apt_ds[eval]'", flush=True)


def drawable(row: Row) -> bool:
    """Whether a row has both figures of the picture, and both are finite."""
    return all(row.get(name) is not None and math.isfinite(row[name]) for name in ("inference_speed", "perplexity"))


def write_section(document: Path, section: str, text: str) -> None:
    """Replace what a document has between `<!-- SECTION -->` and `<!-- end -->`.

    Raises:
        UserError: the file cannot be read, or lacks the section.
    """
    try:
        old = document.read_text(encoding="utf8")
    except OSError as error:
        raise UserError(f"--into {str(document)!r} cannot be read: {error.strerror}") from None
    place = re.compile(rf"(<!-- {re.escape(section)} -->\n).*?(<!-- end -->)", re.DOTALL)
    new, count = place.subn(lambda match: f"{match[1]}{text}{match[2]}", old)
    if count != 1:
        raise UserError(
            f"--section {section!r}: {document} has {count} places for it; give it one, "
            f"a line '<!-- {section} -->' and a line '<!-- end -->' after it"
        )
    document.write_text(new, encoding="utf8")


def main() -> None:
    """Print the table of a finished comparison; write it into a document if one is given."""
    parser = cli.Parser("python -m apt_ds.analysis.compare_table --folder DIR [--into FILE --section NAME]")
    parser.add_argument("--folder", required=True, help="output folder of compare.py; its table.json is read")
    parser.add_argument("--into", default="", help="a Markdown file to write the table into")
    parser.add_argument("--section", default="", help="name of the place in that file: <!-- NAME --> to <!-- end -->")
    given = parser.read(sys.argv[1:])
    if bool(given.into) != bool(given.section):
        raise UserError("--into and --section require each other: give both or neither")
    source = Path(given.folder) / "table.json"
    try:
        rows = json.loads(source.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{source} cannot be read: {error}; give the output folder of a finished compare.py") from None
    text = f"{markdown(rows)}\n{notes(rows)}"
    print(text, flush=True)
    if given.into:
        write_section(Path(given.into), given.section, text)
