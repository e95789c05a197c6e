"""Starts the adapters of a run from a LoRA in a PEFT folder (`--init_adapters`).

PEFT computes W + f B A with f = alpha / r, or alpha / sqrt(r) under rslora. The adapter's s is 2 at every rank, so that
W_A = A and W_B = (f / s) B compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.config.errors import UserError
from apt_ds.config.pruning_options import AUTO, PROJECTIONS
from apt_ds.config.run_config import RunConfig
from apt_ds.models.adapter import SCALE, adapters
from apt_ds.models.architectures import architecture_of
from apt_ds.models.base import Base
from apt_ds.models.blocks import Anatomy
from apt_ds.models.peft_folder import PeftFolder, read_folder
from apt_ds.models.peft_format import BaseNote
from apt_ds.models.peft_loading import check_base
from apt_ds.runtime import collectives, zero

Joined = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class InitialAdapters:
    """What the adapters and the layers of the task start from.

    Attributes:
        where: names the folder in an error.
        pairs: path in the model to W_A [r, in] and W_B [out, r], fp32.
        heads: name to value of the parameters of the task's layers.
    """

    where: str
    pairs: dict[str, tuple[Tensor, Tensor]]
    heads: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def load(self, model: nn.Module) -> None:
        """Give the values to a model with adapters and without an engine. Collective under ZeRO stage 3.

        Raises:
            UserError: a shape differs from the model's.
        """
        layers = dict(adapters(model))
        for path, (a, b) in self.pairs.items():
            layer = layers[path]
            shapes = (len(a), layer.in_features), (layer.out_features, len(a))
            for name, value, shape in zip(("lora_A", "lora_B"), (a, b), shapes, strict=True):
                self._replace(layer, name, value, shape, f"{path}.{name}")
        for name, value in self.heads.items():
            path, _, attribute = name.rpartition(".")
            try:
                module, old = model.get_submodule(path), model.get_parameter(name)
            except AttributeError:
                raise UserError(f"{self.where} has the weight {name}, which the model lacks") from None
            self._replace(module, attribute, value, tuple(zero.full_shape(old)), name)

    def _replace(self, module: nn.Module, name: str, value: Tensor, shape: tuple[int, ...], label: str) -> None:
        if tuple(value.shape) != shape:
            raise UserError(
                f"{self.where} is of another base: {label} has the shape {list(value.shape)}, the model needs "
                f"{list(shape)}"
            )
        old = getattr(module, name)
        new = nn.Parameter(value.to(old.device, old.dtype, copy=True).contiguous(), old.requires_grad)
        zero.shard([new], like=old)
        setattr(module, name, new)


def resolve(run: RunConfig, base: Base, saved: dict[str, Any] | None) -> tuple[RunConfig, InitialAdapters | None]:
    """Read the folder of `--init_adapters` and take ranks and targets from it. Collective.

    Args:
        run: the options.
        base: the base model.
        saved: all options of the run that this one resumes, None for a new run. A checkpoint has the adapters
            already, so that its run no longer needs the folder.

    Returns:
        The options with the folder's targets and largest rank, and the adapters. None: the run starts new adapters,
        or resumes.

    Raises:
        UserError: the folder does not fit the model or the options, or holds what an adapter cannot compute.
    """
    if saved is not None:
        same = ("init_adapters", "rank", "adapter_targets") if saved.get("init_adapters") else ()
        return run.replace(**({"init_adapters": ""} | {name: saved[name] for name in same})), None
    if not run.adapter.init_adapters:
        return run, None
    where = f"--init_adapters {run.adapter.init_adapters!r}"
    folder = read_folder(Path(run.adapter.init_adapters), where)
    note = BaseNote.read(Path(run.adapter.init_adapters))
    if note is not None:
        collectives.on_main(
            lambda: check_base(note, base.source, f"{where}: the base {run.model.model_name_or_path!r} of the run")
        )
    joined = architecture_of(base.config).joined(base.anatomy)
    initial = initial_of(folder, base.anatomy, joined, where)
    rank = max(len(a) for a, _ in initial.pairs.values())
    if run.adapter.grows and rank > run.adapter.max_rank:
        raise UserError(f"{where} has rank {rank}: give --max_rank {rank} or more, or --rank_growth none")
    names = projections(base.anatomy, initial.pairs)
    if run.adapter.adapter_targets != AUTO:
        missing = [name for name in names if name not in run.targets]
        if missing:
            raise UserError(
                f"{where} has adapters on {','.join(names)}, --adapter_targets {run.adapter.adapter_targets} leaves "
                f"out {missing[0]}: name it too, or give auto"
            )
        names = list(run.targets)
    return run.replace(adapter_targets=",".join(names), rank=rank), initial


def initial_of(folder: PeftFolder, anatomy: Anatomy, joined: Joined, where: str) -> InitialAdapters:
    """The adapters of a folder by their places in a model.

    Args:
        folder: what the folder holds.
        anatomy: the blocks of the model.
        joined: name of a weight that stock models have as one, to the names of its parts in the model.
        where: names the folder in an error.

    Raises:
        UserError: a place takes no adapter.
    """
    known = {path for paths in anatomy.targets.values() for path in paths}
    parts = {_module(whole): tuple(map(_module, names)) for whole, names in joined.items()}
    find = _finder({*known, *parts}, where, anatomy)
    initial = InitialAdapters(where, {}, heads=_heads(folder, anatomy, where))
    for path, (a, b, factor) in folder.pairs.items():
        place, b = find(path), b * (factor / SCALE)
        initial.pairs.update(split(a, b, parts[place], anatomy) if place in parts else {place: (a, b)})
    return initial


def split(a: Tensor, b: Tensor, parts: tuple[str, ...], anatomy: Anatomy) -> dict[str, tuple[Tensor, Tensor]]:
    """The adapters of a joined layer's parts, without the ranks that are zero in a part. An empty one is left out.

    An adapter that nothing has trained is zero everywhere. Its parts keep all ranks.

    Args:
        a: W_A of the joined layer, [r, in].
        b: W_B of it, [out, r].
        parts: the paths of the parts, in the order of rows.
        anatomy: has the rows of each part.
    """
    counts = [*anatomy.sizes.counts, anatomy.sizes.hidden]
    rows = {slot.path: counts[slot.rows.site] * slot.rows.unit for slot in anatomy.slots if slot.rows is not None}
    sizes = [rows[part] for part in parts]
    if sum(sizes) != len(b):
        return {parts[0]: (a, b)}  # of another base: `load` refuses the shape
    adapters = {}
    for part, own in zip(parts, b.split(sizes), strict=True):
        used = own.any(dim=0) if b.any() else torch.ones(len(a), dtype=torch.bool)
        if used.any():
            adapters[part] = a[used], own[:, used]
    return adapters


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _finder(known: set[str], where: str, anatomy: Anatomy) -> Callable[[str], str]:
    """Finds the place in the model that a path of the folder means. A LoRA of an encoder without a head lacks a prefix.

    The function raises UserError where there is none.
    """

    def find(path: str) -> str:
        if path in known:
            return path
        ends = [place for place in known if place.endswith(f".{path}")]
        if len(ends) == 1:
            return ends[0]
        targets = ",".join(name for name in PROJECTIONS if name in anatomy.targets)
        raise UserError(
            f"{where} has an adapter on {path}, which is none of the model's projections {targets}: give adapters of "
            "this base on these"
        )

    return find


def _heads(folder: PeftFolder, anatomy: Anatomy, where: str) -> dict[str, Tensor]:
    """The values of the task's layers among what the folder has saved whole."""
    tops = {path.partition(".")[0] for path in anatomy.task_heads if not path.startswith(_stem(anatomy))}
    for name in folder.whole:
        inside = name.partition(".")[0] in tops or any(name.startswith(f"{path}.") for path in anatomy.task_heads)
        if not inside:
            raise UserError(
                f"{where} has trained {name.rpartition('.')[0]} whole (modules_to_save), which is not supported: only "
                "layers that make a task's answer are"
            )
    return dict(folder.whole)


def _stem(anatomy: Anatomy) -> str:
    """The first part of the paths of all layers, with its dot."""
    return f"{anatomy.layers[0].partition('.')[0]}."


def projections(anatomy: Anatomy, paths: Mapping[str, object]) -> list[str]:
    """The projections that have an adapter, in the order of `PROJECTIONS`. A fused layer counts as its first one."""
    owner: dict[str, str] = {}
    for name in PROJECTIONS:
        for path in anatomy.targets.get(name, ()):
            owner.setdefault(path, name)
    named = {owner[path] for path in paths}
    return [name for name in PROJECTIONS if name in named]
