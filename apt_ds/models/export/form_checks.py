"""Whether a run's model can have the form of `--export_format`, as far as the options and the base model say."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.output_options import PADDED, STOCK
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import architecture_of
from apt_ds.models.blocks import HIDDEN, Anatomy, Sizes
from apt_ds.models.export.padded_form import padded_form, reason
from apt_ds.models.writable_sizes import EVERY_SIZE


def check(run: RunConfig, config: PretrainedConfig, anatomy: Anatomy, dtype: torch.dtype) -> None:
    """Check `--export_format` before anything is trained.

    Args:
        run: the options.
        config: the configuration of the base model.
        anatomy: its blocks.
        dtype: dtype of the written weights.

    Raises:
        UserError: no model that the run may end with has that form.
    """
    if not run.pruning.prunes:
        return
    if (
        run.output.export_format == STOCK
        and "heads" in run.pruning.block_kinds
        and not fewer_heads_fit(config, anatomy)
    ):
        raise UserError(
            f"--export_format stock: the stock class of a {config.model_type!r} does not hold every number of heads; "
            "give padded, or leave heads out of --prune_blocks"
        )
    if run.output.export_format == PADDED:
        check_padded(run, config, anatomy, dtype)


def fewer_heads_fit(config: PretrainedConfig, anatomy: Anatomy) -> bool:
    """Whether a stock class holds equal layers with fewer heads. True where the search asks for sizes that fit."""
    spec = architecture_of(config)
    if spec.padded is not None:
        return False  # layers that keep equally many heads may keep different ones
    if spec.writable(config) is not EVERY_SIZE:
        return True
    counts = tuple(
        max(1, count - (site.kind == "head")) for site, count in zip(anatomy.sites, anatomy.sizes.counts, strict=True)
    )
    fewer = anatomy.with_sizes(Sizes(counts, anatomy.sizes.hidden))
    return not spec.export(nn.Module(), copy.deepcopy(config), fewer).modules


def check_padded(run: RunConfig, config: PretrainedConfig, anatomy: Anatomy, dtype: torch.dtype) -> None:
    """Check that a model of a family can be padded. Arguments are those of `check`.

    Raises:
        UserError: it cannot.
    """
    kinds, adaptive = run.pruning.block_kinds, run.pruning.structure == "adaptive"
    if adaptive and anatomy.experts and "experts" in kinds:
        raise UserError(reason(config, "layers may keep different numbers of experts (--prune_blocks experts)"))
    rows = {slot.path: slot.rows for slot in anatomy.slots}
    over_heads = [norm for norm in anatomy.weighted_norms if (axis := rows[norm]) is not None and axis.site != HIDDEN]
    if adaptive and over_heads and "heads" in kinds and dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        why = f"its norms run over all heads, which float32 alone can correct, and weights are written in {name}"
        raise UserError(reason(config, why))
    if "hidden" in kinds and architecture_of(config).padded is None:
        narrower = anatomy.with_sizes(Sizes(anatomy.sizes.counts, anatomy.sizes.hidden - 1))
        try:
            padded_form(nn.Module(), config, anatomy, narrower)
        except UserError:
            why = "its stock class does not hold every hidden size; leave hidden out of --prune_blocks"
            raise UserError(reason(config, why, ", or")) from None
