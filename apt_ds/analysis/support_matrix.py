"""What is supported, as a table: families, tasks, block kinds, bits, and how a cut model is written.

`python -m apt_ds.analysis.support_matrix` prints it. Everything in it comes from the specs of the families.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from apt_ds.analysis.result_table import write_section
from apt_ds.config import cli
from apt_ds.config.tasks import GLUE_TASKS, SQUADS, TASKS
from apt_ds.models.architectures import REGISTRY
from apt_ds.models.architectures.spec import AUTO_CLASSES, Architecture
from apt_ds.models.blocks import plural
from apt_ds.models.export.configs import auto_map

Cells = tuple[str, ...]

SECTION, SHORT_SECTION = "support matrix", "support matrix, short"
HEADERS = ("models", "`model_type`", "`--task`", "`--prune_blocks`", "`--base_bits`", "written as", "adaptive sizes")
GROUPS = {"GLUE": GLUE_TASKS, "SQuAD": SQUADS}
AUTO_NAMES = {"AutoModelForSequenceClassification": "classifier", "AutoModel": "base model"}


def cells(spec: Architecture) -> Cells:
    """One family's row, in the order of `HEADERS`."""
    config = AutoConfig.for_model(spec.model_type)
    task = spec.first_task_type
    anatomy = spec.blocks(config, task)
    kinds = dict.fromkeys([*(site.kind for site in anatomy.sites), "hidden"])
    return (
        spec.title or spec.stock_classes[task].partition("For")[0],
        f"`{spec.model_type}`",
        ", ".join(task_names(spec)),
        ", ".join(plural(kind) for kind in kinds),
        "16" if anatomy.experts else "16, 8, 4",
        spec.uniform_form or "its own stock class",
        adaptive_form(spec, config),
    )


def task_names(spec: Architecture) -> list[str]:
    """The values of `--task` that a family answers. A whole benchmark has one name."""
    left = dict.fromkeys(task for task in TASKS if task in spec.tasks)
    names = []
    for name, members in GROUPS.items():
        if all(task in left for task in members):
            names.append(name)
            left = {task: None for task in left if task not in members}
    return [*(f"`{task}`" for task in left), *names]


def adaptive_form(spec: Architecture, config: PretrainedConfig) -> str:
    """The classes of a family's modelling file, besides those that its tasks need."""
    if spec.modeling is None:
        return "not supported"
    config_class = next(iter(spec.own_classes.values())).config_class
    assert config_class is not None
    classes = auto_map(spec.modeling, config_class)
    tasks = {AUTO_CLASSES[task].__name__ for task in spec.stock_classes}
    more = [word for auto, word in AUTO_NAMES.items() if auto in classes and auto not in tasks]
    return " + ".join(["modelling file", *more])


def table(headers: Cells, rows: list[Cells]) -> str:
    """A Markdown table."""
    lines = [headers, tuple("---" for _ in headers), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def support_matrix() -> str:
    """The table with one row per family."""
    return table(HEADERS, [cells(REGISTRY[name]) for name in sorted(REGISTRY)])


def short_matrix() -> str:
    """The table with one row for all families that are supported in the same way, without model types."""
    merged: dict[Cells, list[str]] = {}
    for name in sorted(REGISTRY):
        title, _, *rest, uniform, _ = cells(REGISTRY[name])
        merged.setdefault((*rest, uniform), []).append(title)
    headers = (HEADERS[0], *HEADERS[2:-1])
    return table(headers, [("; ".join(titles), *rest) for rest, titles in merged.items()])


def main() -> None:
    """Print the table; write it into a document if one is given."""
    parser = cli.Parser("python -m apt_ds.analysis.support_matrix [--short] [--into FILE]")
    parser.add_argument("--short", action="store_true", help="one row for all families with the same support")
    parser.add_argument(
        "--into", default="", help=f"a Markdown file with the place: <!-- {SECTION} --> to <!-- end -->"
    )
    given = parser.read(sys.argv[1:])
    text = short_matrix() if given.short else support_matrix()
    print(text, flush=True)
    if given.into:
        write_section(Path(given.into), SHORT_SECTION if given.short else SECTION, text)


if __name__ == "__main__":
    from apt_ds.runtime import exit_status

    exit_status.main(main)
