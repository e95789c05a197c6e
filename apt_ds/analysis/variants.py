"""The methods of a comparison, each with options of its own: `apt,apt[repair=ls,distill=logits],pruning`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from apt_ds.config.errors import UserError
from apt_ds.config.methods import METHODS, PRUNING_METHODS
from apt_ds.config.nearest import suggest
from apt_ds.config.run_config import OPTIONS
from apt_ds.training.model_card.command import shown

FLAG = "--methods"
PRUNING = "pruning"  # the name of all methods that prune
# given by other options of the comparison
OWN = ("method", "sparsity", "seed", "output_dir")
_ITEM = re.compile(r"(?P<method>[^\[\]]+)(\[(?P<options>[^\[\]]*)\])?")

Setting = tuple[tuple[str, str], ...]


class Variant(NamedTuple):
    """A method with options of its own.

    Attributes:
        method: A key of `METHODS`.
        options: (name, value) of options of train.py.
    """

    method: str
    options: Setting = ()

    @property
    def label(self) -> str:
        """The name of its rows, as users write it, but without the folders of absolute paths."""
        text = ",".join(f"{name}={shown(value)}" for name, value in self.options)
        return f"{self.method}[{text}]" if self.options else self.method

    @property
    def folder(self) -> str:
        """The start of the names of its folders, without brackets and commas."""
        return "-".join([self.method, *(f"{name}={value}" for name, value in self.options)])

    @property
    def prunes(self) -> bool:
        """Whether it removes blocks. Otherwise it runs once for all sparsities."""
        mode = dict(self.options).get("pruning", METHODS[self.method].get("pruning"))
        return mode != "none"


def parse_variants(text: str) -> tuple[Variant, ...]:
    """The methods that the value of --methods names, in order.

    Raises:
        UserError: An unknown method or option, a value is missing, or the same variant twice.
    """
    variants: list[Variant] = []
    for item in _items(text):
        if item == PRUNING:
            variants += [Variant(name) for name in PRUNING_METHODS if Variant(name) not in variants]
            continue
        variant = _variant(item)
        if variant in variants:
            raise UserError(f"{FLAG}: {item} is named twice: give each method once")
        variants.append(variant)
    return tuple(variants)


def _variant(item: str) -> Variant:
    parts = _ITEM.fullmatch(item)
    if parts is None:
        raise UserError(f"{FLAG} {item!r} is not allowed: give a method, or one with options: apt[repair=ls,align=8]")
    method = parts["method"].strip()
    if method not in METHODS:
        raise UserError(f"{FLAG} {method!r} is not allowed: give some of {', '.join([*METHODS, PRUNING])}")
    return Variant(method, tuple(_options(item, parts["options"])) if parts["options"] is not None else ())


def _options(item: str, text: str) -> Iterator[tuple[str, str]]:
    """The options between brackets. A part without `=` continues the value before it: `adapter_targets=q,v`."""
    joined: list[str] = []
    for word in text.split(","):
        if "=" in word or not joined:
            joined.append(word.strip())
        else:
            joined[-1] += f",{word.strip()}"
    names = [word.partition("=")[0].strip() for word in joined]
    for name, word in zip(names, joined, strict=True):
        if name not in OPTIONS:
            raise UserError(f"{FLAG} {item}: {name!r} is an unknown option{suggest(name, OPTIONS)}")
        if name in OWN or names.count(name) > 1:
            raise UserError(f"{FLAG} {item}: {name} is not allowed here: it is given elsewhere on this command line")
        if "=" not in word:
            raise UserError(f"{FLAG} {item}: {name} has no value: give {name}=VALUE")
        yield name, word.partition("=")[2].strip()


def _items(text: str) -> Sequence[str]:
    """The text between commas outside brackets."""
    return [item.strip() for item in re.split(r",(?![^\[\]]*\])", text)]
