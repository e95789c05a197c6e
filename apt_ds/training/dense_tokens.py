"""What the dense model says of the training tokens: computed once before the first step, then read from the disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.batching import collate
from apt_ds.data.cache import CacheSettings, DamagedError
from apt_ds.data.length_order import Order
from apt_ds.data.rows import Rows
from apt_ds.data.teacher_cache import (
    CacheWriter,
    Facts,
    Layout,
    TeacherCache,
    name_of,
    refuse_other,
    remove,
    usable,
)
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.losses.token_losses import TokenLoss
from apt_ds.models import loading
from apt_ds.models.base_config import decisive
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives, heartbeat, notices, signals, zero
from apt_ds.training.run_data import Data

Payload = tuple[list[int], np.ndarray, np.ndarray]  # places of rows, int32 [tokens, k], fp16 [tokens, k]


def make_or_find(
    run: RunConfig, base: Base, config: zero.Config, data: Data, model: nn.Module, fingerprint: str, pad_id: int
) -> TeacherCache:
    """The cache of the dense model's probabilities, made if it is absent. Collective.

    Args:
        run: the options.
        base: the base model.
        config: DeepSpeed's configuration.
        data: the data sets.
        model: the base model as it was loaded: without adapters, masks and an engine.
        fingerprint: that of its weights.
        pad_id: the token id of padding.

    Raises:
        UserError: --teacher_cache holds something else, or the disk has not enough room.
    """
    rows = rows_read(data.order, data.total_steps, len(data.train))
    facts: Facts = {
        "model": fingerprint,
        "config": collectives.digest(decisive(base.config)),
        "data": data.train.fingerprint,
        "rows": collectives.digest(rows),
        "dtype": str(loading.run_dtype(run)),
        "temperature": run.pruning.distill_temperature,
        "top_k": run.pruning.distill_top_k,
    }
    folder = folder_of(run, facts)
    if not _on_all_nodes(run, folder, facts):
        layout = layout_of(run, base, data.train, rows)
        with _runner(model, config) as runner:
            _make(folder, layout, facts, DensePass(run, data.train, layout, runner, pad_id))
    collectives.barrier()
    cache = TeacherCache(folder)
    collectives.agree("the cache of the dense model's probabilities", cache.digest)
    heartbeat.phase("loading", limited=False)
    return cache


def folder_of(run: RunConfig, facts: Facts) -> Path:
    """Where the cache is, or will be."""
    own = run.pruning.teacher_cache
    return Path(own).absolute() if own else parent_of(run) / name_of(facts)


def parent_of(run: RunConfig) -> Path:
    """The folder that the cache is in."""
    own = run.pruning.teacher_cache
    return Path(own).absolute().parent if own else CacheSettings(run.data.data_cache_dir).root().absolute()


def rows_read(order: Order, steps: int, count: int) -> np.ndarray:
    """The numbers of the rows that the first steps read, of `count`: increasing, int64."""
    read = np.zeros(count, bool)
    for step in range(steps):
        read[order.indices(step)] = True
        if step % 64 == 0 and read.all():
            break
    return np.flatnonzero(read)


def layout_of(run: RunConfig, base: Base, rows: Rows, read: np.ndarray) -> Layout:
    """The layout of the cache for the rows of the numbers `read`."""
    count = TASK_LOSSES[LANGUAGE_MODEL].loss_denominator
    counts = np.array([count(rows[int(number)]) for number in read], np.int64)
    return Layout(read, counts, min(run.pruning.distill_top_k, base.config.vocab_size))


def _on_all_nodes(run: RunConfig, folder: Path, facts: Facts) -> bool:
    """Whether every node has the cache. Collective."""

    def look() -> bool:
        try:
            return not run.data.overwrite_cache and usable(folder, facts)
        except DamagedError as error:
            notices.warn(f"{folder} is damaged ({error}): it is made again")
            return False

    # None on the ranks that have not looked
    own = collectives.on_each_node(look)
    return all(collectives.gather_objects(own is not False))


def _make(folder: Path, layout: Layout, facts: Facts, dense: DensePass) -> None:
    """Fill a folder on every node. Collective."""
    writers: list[CacheWriter] = []
    start = time.perf_counter()

    def begin() -> None:
        remove(folder)
        refuse_other(folder)
        writers.append(CacheWriter(folder, layout))
        signals.UNFINISHED.add(writers[0].partial)

    try:
        collectives.on_each_node(begin)
        for payloads in dense.rounds():
            for writer in writers:
                for payload in payloads:
                    writer.write(*payload)
        seconds = collectives.on_main(lambda: time.perf_counter() - start)

        def finish() -> None:
            for writer in writers:
                writer.finish(facts, seconds)

        collectives.on_each_node(finish)
    finally:
        for writer in writers:
            writer.discard()
            signals.UNFINISHED.discard(writer.partial)


class DensePass:
    """One pass of some rows through the dense model. Ranks share the batches, which depend on the rows alone."""

    def __init__(self, run: RunConfig, rows: Rows, layout: Layout, runner: nn.Module, pad_id: int) -> None:
        task_loss = TASK_LOSSES[LANGUAGE_MODEL]
        assert isinstance(task_loss, TokenLoss)
        self.rows, self.layout, self.runner, self.pad_id, self.task_loss = rows, layout, runner, pad_id, task_loss
        self.temperature, self.device = run.pruning.distill_temperature, zero.device()
        size = run.optim.per_device_eval_batch_size
        # rows of about equal lengths, the longest first, so that memory runs out at once or never
        places = np.argsort(-rows.lengths[layout.rows], kind="stable").tolist()
        self.batches = [places[start : start + size] for start in range(0, len(places), size)]

    @torch.no_grad()
    def rounds(self) -> Iterator[list[Payload]]:
        """What all ranks computed in each round. Every rank gets all of it. Collective."""
        self.task_loss.check(self.runner, self.device)
        world, rank = collectives.world_size(), collectives.rank()
        for start in range(0, len(self.batches), world):
            heartbeat.phase(f"dense model: batch {start + 1} of {len(self.batches)}")
            # sharded weights need every rank, also one that has no batch left
            payload = self._payload(self.batches[min(start + rank, len(self.batches) - 1)])
            gathered = collectives.gather_objects(payload if start + rank < len(self.batches) else None)
            yield [one for one in gathered if one is not None]

    def _payload(self, places: list[int]) -> Payload:
        batch = collate([self.rows[int(self.layout.rows[place])] for place in places], self.pad_id)
        on_device = replace(batch.to(self.device), labels=batch.labels)
        ids, log_probabilities = self.task_loss.top_tokens(self.runner, on_device, self.layout.k, self.temperature)
        return places, ids.int().cpu().numpy(), log_probabilities.half().cpu().numpy()


@contextmanager
def _runner(model: nn.Module, config: zero.Config) -> Iterator[nn.Module]:
    """The base model ready for forward passes, under an engine if its weights are sharded. Collective."""
    heartbeat.phase("dense model", limited=False)
    model.eval()
    if not zero.is_partitioned(model):
        yield model
        return
    precision: zero.Config = {key: config[key] for key in ("bf16", "fp16") if key in config}
    engine = zero.build_for_inference(model, zero.inference_config(config["zero_optimization"], precision))
    try:
        yield engine
    finally:
        zero.destroy(engine)
        del engine
        zero.free_memory()
