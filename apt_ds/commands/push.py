"""Upload the model of a finished run to the Hugging Face hub: `python -m apt_ds.commands.push OUT`.

The names and flags are those of the run. What its `config.yaml` states need not be given again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from apt_ds.config.cli import Parser
from apt_ds.config.errors import UserError
from apt_ds.config.paths import shortened
from apt_ds.runtime import exit_status


def main() -> None:
    """Upload as the command line says.

    Raises:
        UserError: no written model, a mistake in the destination, or an upload that failed.
    """
    parser = Parser("python -m apt_ds.commands.push OUT [--NAME VALUE ...]")
    parser.add_argument("output", metavar="OUT", help="the output folder of a run")
    parser.add_argument("--hub_model_id", default="", help="repository; default: that of the run, or OUT's name")
    parser.add_argument("--hub_private_repo", action="store_true", help="make the repository private if it is new")
    parser.add_argument("--hub_token", default="", help="token; default: that of hf auth login or HF_TOKEN")
    given = parser.read(sys.argv[1:])
    output = Path(given.output)
    if not os.path.isfile(output / "model" / "config.json"):
        raise UserError(
            f"{shortened(given.output) or 'OUT'} has no written model: give the output folder of a finished run"
        )
    # the hub's client takes a second to import: a wrong flag should not wait for it
    from apt_ds.models.architectures.licence_terms import terms_of
    from apt_ds.models.origin import licence_in_card
    from apt_ds.training.hub import check_destination, upload
    from apt_ds.training.trackers.background import short_reason

    options = saved_options(output)
    terms = terms_of(licence_in_card(output / "model"))
    destination = check_destination(
        given.hub_model_id or str(options.get("hub_model_id") or ""),
        output.absolute().name,
        given.hub_private_repo or bool(options.get("hub_private_repo")),
        given.hub_token,
        terms.name_begins if terms is not None else "",
    )
    try:
        url = upload(output / "model", destination)
    except Exception as error:
        raise UserError(f"the model was not uploaded: {short_reason(error)}") from None
    print(f"uploaded: {url}", flush=True)


def saved_options(output: Path) -> dict[str, Any]:
    """The options of a run. {} where its configuration cannot be read."""
    try:
        content = yaml.safe_load((output / "config.yaml").read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
