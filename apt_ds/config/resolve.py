"""From what a user writes to a checked configuration: defaults < preset < recipe < method < file < command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import Field
from typing import Any

from apt_ds.config import cli
from apt_ds.config.errors import UserError
from apt_ds.config.nearest import suggest
from apt_ds.config.option_types import Value, converted
from apt_ds.config.options_file import read_options
from apt_ds.config.run_config import OPTIONS, PLACES, RunConfig

DEFAULT_PRESET = "quickstart"


def resolve(argv: Sequence[str], also: Sequence[str] = ()) -> RunConfig:
    """The checked configuration of a command line.

    Args:
        argv: the arguments, without the program's name.
        also: options of the calling script, which an unknown one may be meant for.

    Raises:
        UserError: the user wrote something wrongly.
        SystemExit: with 0, after `--help`.
    """
    given = _read_command_line(argv, also)
    path = given.pop("config", None)
    stated = given if path is None else _merge(str(path), given)
    if not stated.get("preset") and not stated.get("model_name_or_path"):
        stated = stated | {"preset": DEFAULT_PRESET}
    config = RunConfig(**stated)
    config.check()
    return config


def _merge(path: str, given: dict[str, Value]) -> dict[str, Value]:
    """The options of a file under those of the command line.

    Raises:
        UserError: the file states another recipe. A saved configuration states every option, so that it would win over
            the recipe of the command line.
    """
    read = read_options(path)
    asked, there = given.get("recipe"), read.get("recipe")
    if asked is not None and there is not None and asked != there:
        raise UserError(
            f"--recipe {asked} contradicts {path}, which states recipe {there}. "
            f"Remove the line from {path}, and the lines of the options that the recipe should choose"
        )
    return read | given


def _read_command_line(argv: Sequence[str], also: Sequence[str]) -> dict[str, Value]:
    """What `argv` states, converted. `config` is a key of its own."""
    usage = "train.py --deepspeed FILE [--preset NAME] [--config FILE] [--NAME VALUE ...]"
    parser = cli.Parser(usage, argument_default=argparse.SUPPRESS)
    groups = {"source": parser.add_argument_group("source (defaults < preset < recipe < method < file < command line)")}
    groups["source"].add_argument("--config", metavar="FILE", help="a YAML or JSON file of options")
    for name, spec in OPTIONS.items():
        title, kind = PLACES[name].group, type(spec.default)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        # a flag without a value means true
        switches = kind is bool or spec.metadata.get("switch")
        arity: dict[str, Any] = {"nargs": "?", "const": "true"} if switches else {}
        groups[title].add_argument(f"--{name}", metavar=kind.__name__.upper(), help=_help(spec), **arity)
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flag = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
        names = ["--config", *(f"--{name}" for name in OPTIONS), *also]
        raise UserError(f"{flag} is an unknown option{suggest(flag, names)}. --help lists all options")
    return {
        name: converted(f"--{name}", OPTIONS[name], value) if name in OPTIONS else value
        for name, value in vars(known).items()
    }


def _help(spec: Field[Any]) -> str:
    allowed, default = spec.metadata["allowed"], spec.default
    shown = str(default).lower() if type(default) is bool else str(default) or "empty"
    # argparse fills in what follows a per cent sign
    return "; ".join(
        [spec.metadata["help"].replace("%", "%%"), *([str(allowed)] if allowed else []), f"default {shown}"]
    )
