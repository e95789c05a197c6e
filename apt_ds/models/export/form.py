"""The form that a cut model is written in, and what the families share to find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType

from torch import Tensor
from transformers import PretrainedConfig

from apt_ds.config.output_options import ADAPTIVE, PADDED, STOCK
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.padding import Padding

Edits = dict[str, Callable[[Tensor], Tensor]]
Split = Callable[[str, Tensor], Iterator[tuple[str, Tensor]]]


def whole(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Write a weight as it is."""
    yield name, value


@dataclass(frozen=True)
class Written:
    """How a cut model is written.

    Attributes:
        config: the content of config.json.
        modules: the files to copy beside the weights: the modelling file, then those it imports. (): a stock class
            has the sizes.
        edits: functions of weights, by the weight's name in the model. The result is written.
        joined: weights that are written as one: its name to the names of its parts in the model, in the order of rows.
        split: (name, CPU tensor) of what to write for a weight, by (name in the model, CPU tensor).
        added: constant weights that the written class has and the model lacks: its name to (shape, value).
        padding: where zeros are added before weights are edited and joined. None: nowhere.
    """

    config: PretrainedConfig
    modules: tuple[ModuleType, ...] = ()
    edits: Edits = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: Split = whole
    added: Mapping[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    padding: Padding | None = None

    @property
    def name(self) -> str:
        """The form: stock, adaptive or padded."""
        if self.padding is not None:
            return PADDED
        return ADAPTIVE if self.modules else STOCK


def counts(anatomy: Anatomy, kind: str) -> list[int]:
    """Number of blocks at each sublayer of a kind, in the table's order."""
    return [n for site, n in zip(anatomy.sites, anatomy.sizes.counts, strict=True) if site.kind == kind]


def alike(values: list[int]) -> bool:
    """Whether all layers have the same number, at least one."""
    return len(set(values)) == 1 and values[0] > 0


def square(anatomy: Anatomy, head_dim: int) -> bool:
    """Whether a stock encoder has the sizes: layers are equal, and the heads of a layer make the hidden size."""
    heads, neurons = counts(anatomy, "head"), counts(anatomy, "neuron")
    return alike(heads) and alike(neurons) and anatomy.sizes.hidden == heads[0] * head_dim


def by_layer(config: PretrainedConfig, config_class: type[PretrainedConfig], **layers: object) -> PretrainedConfig:
    """The same configuration as a `config_class`, with sizes by layer in the fields `layers`."""
    values = config.to_dict() | layers
    values.pop("model_type")
    return config_class(**values)


@dataclass(frozen=True)
class ExpertNames:
    """The names of a mixture's weights in stock checkpoints, which have a matrix for each expert and projection.

    Attributes:
        block: the module with router and experts, `mlp` in the model.
        gate, up, down: the projections of an expert.
    """

    block: str
    gate: str
    up: str
    down: str


def mixture_sizes(anatomy: Anatomy) -> tuple[list[int], list[int]]:
    """Experts of each layer, and neurons of each expert of each layer."""
    sizes = [mixture.shape(anatomy.sizes) for mixture in anatomy.experts]
    return [count for count, _ in sizes], [neurons for _, neurons in sizes]


def per_expert(names: ExpertNames, name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The weights of the experts one by one, as stock checkpoints have them. Other weights as they are."""
    name = name.replace(".mlp.", f".{names.block}.")
    experts, _, fused = name.rpartition(".")
    if fused == "down_proj" and value.dim() == 3:
        for number, matrix in enumerate(value):
            yield f"{experts}.{number}.{names.down}.weight", matrix.clone()
    elif fused == "gate_up_proj" and value.dim() == 3:
        for number, matrix in enumerate(value):
            for part, half in zip((names.gate, names.up), matrix.chunk(2), strict=True):
                yield f"{experts}.{number}.{part}.weight", half.clone()
    else:
        yield name, value
