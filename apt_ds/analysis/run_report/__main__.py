"""`python -m apt_ds.analysis.run_report OUT` writes OUT/report.html, of a finished or an interrupted run."""

from __future__ import annotations

import sys

from apt_ds.analysis.run_report.writing import write
from apt_ds.config import cli
from apt_ds.runtime import exit_status


def parser() -> cli.Parser:
    """The options of the command."""
    options = cli.Parser("python -m apt_ds.analysis.run_report OUT")
    options.add_argument("folder", metavar="OUT", help="the output folder of a run, finished or not")
    return options


def main() -> None:
    """Write the report that the command line asks for."""
    print(write(parser().read(sys.argv[1:]).folder))


if __name__ == "__main__":
    exit_status.main(main)
