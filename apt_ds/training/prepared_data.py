"""Data sets that the first rank of every node reads and tokenizes, and parts of them to train and evaluate on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from apt_ds.config.run_config import RunConfig
from apt_ds.data.cache import CacheSettings
from apt_ds.data.prepared import Prepared, prepare
from apt_ds.data.readers import Source
from apt_ds.data.recipe import Recipe
from apt_ds.data.splitting import held_out_numbers
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.runtime import collectives

HELD_OUT = 100  # training examples to hold out if the options name no evaluation data
E = TypeVar("E")


@dataclass
class Part(Generic[E]):
    """Some examples of a data set: those of the numbers `numbers`, in increasing order."""

    data: Prepared[E]
    numbers: np.ndarray

    def examples(self) -> list[E]:
        """The examples, for small parts."""
        return [self.data.examples[i] for i in self.numbers]

    def tokenized(self) -> TokenizedSet:
        """The rows, whose fingerprint the first rank of every node computes. Collective."""

        def known() -> bytes:
            return b"" if self.data.folder is None else self.data.tokenized(self.numbers).fingerprint.encode()

        # on every node: one may have files where another has the same data in memory
        fingerprint = collectives.from_node(known)
        return self.data.tokenized(self.numbers, fingerprint.decode())


def cache_settings(run: RunConfig) -> CacheSettings:
    """Where the options keep tokenized data."""
    return CacheSettings(run.data.data_cache_dir, run.data.overwrite_cache, run.data.preprocessing_num_workers)


def prepared_on_node(run: RunConfig, find: Callable[[], Source], recipe: Recipe[E]) -> Prepared[E]:
    """Read and tokenize on the first rank of every node. Its other ranks open the result. Collective.

    Args:
        run: the options.
        find: finds the source of the records.
        recipe: how they become rows.
    """
    settings = cache_settings(run)
    own: list[Prepared[E]] = []

    def make() -> bytes:
        own.append(prepare(find(), recipe, settings))
        return own[0].to_bytes(recipe) if collectives.world_size() > 1 else b""

    content = collectives.from_node(make)
    data = own[0] if own else Prepared.from_bytes(content, recipe)
    if any(collectives.gather_objects(data.temporary)):
        # all ranks have opened its files by now
        data.remove_temporary()
    return data


def whole(data: Prepared[E], limit: int = 0) -> Part[E]:
    """All examples, or the first `limit`."""
    return Part(data, np.arange(len(data.examples))[: limit or None])


def split(run: RunConfig, data: Prepared[E], held_out: int = 0) -> tuple[Part[E], Part[E]]:
    """The examples to train on, and the held-out ones. Raises UserError where there are too few.

    held_out: how many. 0: as the options say.
    """
    total = run.data.eval_size or HELD_OUT
    numbers = held_out_numbers(len(data.examples), held_out or total, run.optim.seed, data.name, total)
    return Part(data, numbers[0]), Part(data, numbers[1])


def train_and_held_out(
    run: RunConfig, find: Callable[[str, str], Source], recipe: Recipe[E]
) -> tuple[Part[E], Part[E]]:
    """Training and held-out examples, of two splits or of the only file. Collective.

    Args:
        run: the options.
        find: (path, split) -> source.
        recipe: how the records become rows.
    """
    if not run.data.eval_data_path and os.path.isfile(run.data.data_path):
        return split(run, prepared_on_node(run, lambda: find(run.data.data_path, "train"), recipe))
    path = run.data.eval_data_path or run.data.data_path
    held_out = prepared_on_node(run, lambda: find(path, "validation"), recipe)
    train = prepared_on_node(run, lambda: find(run.data.data_path, "train"), recipe)
    return whole(train), whole(held_out, run.data.eval_size)
