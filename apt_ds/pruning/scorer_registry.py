"""The scorer of a run. A new score is one row of `MAKERS`, one class and one value of `--score`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.models.blocks import Anatomy
from apt_ds.models.scope import competing_kinds
from apt_ds.pruning.fisher import Fisher
from apt_ds.pruning.flap import Flap
from apt_ds.pruning.l0_gates import L0Gates
from apt_ds.pruning.obs import Obs
from apt_ds.pruning.random_scores import Random
from apt_ds.pruning.salience import Salience
from apt_ds.pruning.scorer import Scorer
from apt_ds.pruning.taylor import Taylor
from apt_ds.pruning.wanda import WandaSp
from apt_ds.runtime import collectives


def make_salience(run: RunConfig, anatomy: Anatomy, device: torch.device) -> Salience:
    """Salience by the run's options. Weights at rest take a plain mean, unless the run asks for the moving average."""
    options = run.pruning
    mean = not options.gradual and options.calibration_average == "mean"
    terms = (options.salience_decay, options.kurtosis, options.kurtosis_factor)
    return Salience(anatomy, *terms, device, options.salience_product, mean, competing_kinds(run, anatomy))


def make_fisher(run: RunConfig, anatomy: Anatomy, device: torch.device) -> Fisher:
    """Fisher information over the run's global batch."""
    return Fisher(anatomy, run.optim.global_batch(collectives.world_size()), device, competing_kinds(run, anatomy))


def make_gates(run: RunConfig, anatomy: Anatomy, device: torch.device) -> L0Gates:
    """Learned gates on the kinds of block that compete."""
    options = run.pruning
    coarse, rate = options.allow_empty_layers, options.gate_learning_rate
    return L0Gates(anatomy, device, competing_kinds(run, anatomy), coarse, run.optim.seed, rate)


MAKERS: dict[str, Callable[[RunConfig, Anatomy, torch.device], Scorer]] = {
    "salience": make_salience,
    "fisher": make_fisher,
    "taylor": lambda run, anatomy, device: Taylor(anatomy, device),
    "obs": lambda run, anatomy, device: Obs(anatomy, device, competing_kinds(run, anatomy)),
    "random": lambda run, anatomy, device: Random(anatomy, device, run.optim.seed),
    "flap": lambda run, anatomy, device: Flap(anatomy, device, competing_kinds(run, anatomy)),
    "wanda_sp": lambda run, anatomy, device: WandaSp(anatomy, device, competing_kinds(run, anatomy)),
    "l0": make_gates,
}


def make_scorer(run: RunConfig, anatomy: Anatomy, device: torch.device) -> Scorer:
    """The scorer that `--score` names."""
    return MAKERS[run.pruning.score](run, anatomy, device)
