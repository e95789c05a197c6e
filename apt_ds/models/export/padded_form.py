"""How a cut model is written as a stock model of uniform sizes, padded with zeros."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.models.architectures import architecture_of
from apt_ds.models.blocks import Anatomy, Sizes
from apt_ds.models.export.form import Written, alike, counts, mixture_sizes
from apt_ds.models.export.padding import Padding


def padded_form(model: nn.Module, config: PretrainedConfig, whole: Anatomy, anatomy: Anatomy) -> Written:
    """The stock form with the smallest uniform sizes that hold those of all layers.

    Args:
        model: the cut model.
        config: the configuration before the cut. It is not changed.
        whole: the blocks before the cut.
        anatomy: the blocks after it.

    Raises:
        UserError: no stock class can hold the model.
    """
    spec = architecture_of(config)
    if spec.padded is not None:
        return spec.padded(model, copy.deepcopy(config), whole, anatomy)
    for kind in ("head", "neuron"):
        if (kept := counts(anatomy, kind)) and not any(kept):
            raise UserError(reason(config, f"no layer has any {kind} left"))
    if not alike(mixture_sizes(anatomy)[0] or [1]):
        raise UserError(reason(config, "its layers keep different numbers of experts, and routers choose empty ones"))
    heads = max(1, *counts(anatomy, "head"))
    for number in range(heads, max(heads, anatomy.sizes.hidden) + 1):
        sizes = uniform_sizes(anatomy, number)
        form = spec.export(model, copy.deepcopy(config), anatomy.with_sizes(sizes))
        if not form.modules:
            return replace(form, padding=Padding(whole, anatomy, sizes))
    hidden = anatomy.sizes.hidden
    raise UserError(reason(config, f"no number of heads, from {heads} on, fits its {hidden} hidden dimensions"))


def uniform_sizes(anatomy: Anatomy, heads: int) -> Sizes:
    """Sizes with `heads` head blocks in every layer, and as many neurons as the largest layer has."""
    neurons = max(1, *(mixture_sizes(anatomy)[1] or counts(anatomy, "neuron")))
    experts = {mixture.neuron_site: mixture.shape(anatomy.sizes)[0] for mixture in anatomy.experts}
    numbers = [
        {"head": heads, "neuron": neurons * experts.get(site, 1)}.get(sublayer.kind, count)
        for site, (sublayer, count) in enumerate(zip(anatomy.sites, anatomy.sizes.counts, strict=True))
    ]
    return Sizes(tuple(numbers), anatomy.sizes.hidden)


def reason(config: PretrainedConfig, why: str, link: str = ";") -> str:
    """The line that refuses padding."""
    return f"--export_format padded: a {config.model_type!r} cannot be padded here: {why}{link} give adaptive"
