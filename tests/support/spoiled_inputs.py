"""Flags of runs with one wrong input, for tests of what a mistake ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

from tests.support import tiny
from tests.support.launcher import Place

Spoil = Callable[[Place], list[str]]


def data(name: str, content: object) -> Spoil:
    """Flags that give spoiled training data."""
    return lambda place: ["--data_path", place.spoiled(name, content)]


def ds(content: object, *flags: str) -> Spoil:
    """Flags that give a spoiled DeepSpeed file."""
    return lambda place: ["--deepspeed", place.spoiled("ds.json", content), *flags]


def flags(*words: str) -> Spoil:
    """Flags that are wrong by themselves. {} in them is replaced by the folder of inputs."""
    return lambda place: [word.replace("{}", str(place.folder)) for word in words]


def folder(**files: str | None) -> Spoil:
    """Flags that give the tiny model with some of its files replaced, or taken away. Names have __ for a dot."""

    def spoil(place: Place) -> list[str]:
        spoiled = place.folder / "spoiled"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(place.folder / "model", spoiled)
        for key, content in files.items():
            path = spoiled / key.replace("__", ".")
            path.unlink()
            if content is not None:
                path.write_text(content, encoding="utf8")
        return ["--model_name_or_path", str(spoiled)]

    return spoil


def config_with(**values: object) -> str:
    """The tiny model's config.json with other values."""
    return json.dumps(tiny.config().to_dict() | values)
