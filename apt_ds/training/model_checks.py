"""The checks of a run's options against its base model that need no weights. A run and its dry run share them."""

from __future__ import annotations

import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter, loading, quantization_checks
from apt_ds.models.export import form_checks
from apt_ds.models.loading import Base
from apt_ds.models.positions import check_positions
from apt_ds.models.scope import check_experts
from apt_ds.models.tensor_parallel import check_vocabulary


def check_model(run: RunConfig, base: Base, device: torch.device | None) -> None:
    """Check what a run does to its base model: adapters, quantized weights, positions, and the form of the export.

    Args:
        run: The options.
        base: The base model's configuration. No weight is read.
        device: The device of the run. None: this machine lacks it.

    Raises:
        UserError: The model does not support an option.
    """
    check_experts(run, base.anatomy)
    adapter.check_targets(base.anatomy, run.targets)
    quantization_checks.check(run, base.anatomy, device)
    check_vocabulary(base.config.vocab_size, run.pruning.tensor_parallel)
    check_positions(base.config, run.data.max_seq_length)
    form_checks.check(run, base.config, base.anatomy, loading.written_dtype(base, run))
