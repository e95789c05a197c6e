"""The form that a cut model is written in, and what the families share to find it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

from torch import Tensor
from transformers import PretrainedConfig

from apt_ds.models.blocks import Anatomy

Edits = dict[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Written:
    """How a cut model is written.

    Attributes:
        config: the content of config.json.
        modules: the files to copy beside the weights: the modelling file, then those it imports. (): a stock class
            has the sizes.
        edits: functions of weights, by the weight's name in the model. The result is written.
        joined: weights that are written as one: its name to the names of its parts in the model, in the order of rows.
    """

    config: PretrainedConfig
    modules: tuple[ModuleType, ...] = ()
    edits: Edits = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def counts(anatomy: Anatomy, kind: str) -> list[int]:
    """Number of blocks at each sublayer of a kind, in the table's order."""
    return [n for site, n in zip(anatomy.sites, anatomy.sizes.counts, strict=True) if site.kind == kind]


def alike(values: list[int]) -> bool:
    """Whether all layers have the same number."""
    return len(set(values)) == 1


def square(anatomy: Anatomy, head_dim: int) -> bool:
    """Whether a stock encoder has the sizes: layers are equal, and the heads of a layer make the hidden size."""
    heads, neurons = counts(anatomy, "head"), counts(anatomy, "neuron")
    return alike(heads) and alike(neurons) and anatomy.sizes.hidden == heads[0] * head_dim


def by_layer(config: PretrainedConfig, config_class: type[PretrainedConfig], **layers: object) -> PretrainedConfig:
    """The same configuration as a `config_class`, with sizes by layer in the fields `layers`."""
    values = config.to_dict() | layers
    values.pop("model_type")
    return config_class(**values)
