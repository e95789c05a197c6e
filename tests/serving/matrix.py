"""The table of consumers, forms and families: `python -m tests.serving.matrix [--into FILE]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from apt_ds.analysis.consumers.consumers import CONSUMERS, Consumer
from apt_ds.analysis.consumers.entry import Case, Entry
from apt_ds.analysis.consumers.table import FORMS, consumer_table, reasons
from apt_ds.analysis.result_table import write_section
from apt_ds.config import cli
from tests.serving.folders import FAMILIES, all_cases

SECTION = "consumers"


def entries_of(consumer: Consumer, cases: dict[tuple[str, str], Case]) -> dict[tuple[str, str, str], Entry]:
    """The entries of one consumer."""
    entries = consumer.check_all(list(cases.values()))
    return {(consumer.name, *key): entry for key, entry in zip(cases, entries, strict=True)}


def main() -> None:
    """Run every consumer on every family in every form. Print the table, and each entry that is not equal."""
    parser = cli.Parser("python -m tests.serving.matrix [--families A,B] [--forms A,B] [--consumers A,B] [--into FILE]")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--consumers", default=",".join(consumer.name for consumer in CONSUMERS))
    parser.add_argument("--into", default="", help=f"a Markdown file with <!-- {SECTION} --> to <!-- end -->")
    given = parser.read(sys.argv[1:])
    entries: dict[tuple[str, str, str], Entry] = {}
    with tempfile.TemporaryDirectory() as place:
        cases = all_cases(Path(place), tuple(given.families.split(",")), tuple(given.forms.split(",")))
        for consumer in CONSUMERS:
            if consumer.name in given.consumers.split(","):
                print(consumer.name, file=sys.stderr, flush=True)
                entries |= entries_of(consumer, cases)
    text = consumer_table(entries)
    print(text, flush=True)
    print(reasons(entries), flush=True)
    if given.into:
        write_section(Path(given.into), SECTION, text)


if __name__ == "__main__":
    from apt_ds.runtime import exit_status

    exit_status.main(main)
