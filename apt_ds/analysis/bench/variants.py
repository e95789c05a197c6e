"""The variants of the benchmark, and their targets relative to PEFT's LoRA."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime.zero import Config, stage

LORA, QLORA = "lora", "qlora"


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: its name on the command line.
        what: its name in the table.
        peft: whether PEFT trains with the loss of transformers. Otherwise apt_ds trains.
        sparsity: fraction removed before steps are timed.
        scoring: whether every step scores blocks and makes a plan.
        bits: bits of the base weights.
        time: target, the largest multiple of LoRA's time. None: no target.
        memory: target, the largest multiple of LoRA's memory. None: no target.
    """

    name: str
    what: str
    peft: bool = False
    sparsity: float = 0.0
    scoring: bool = False
    bits: int = 16
    time: float | None = None
    memory: float | None = None


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(LORA, "PEFT LoRA", peft=True),
        Variant(QLORA, "PEFT QLoRA, NF4", peft=True, bits=4),
        Variant("dense", "apt_ds dense, scoring", scoring=True, time=1.05),
        Variant("unscored", "apt_ds dense, no scoring"),
        Variant("cut30", "apt_ds, 30 % cut", sparsity=0.3, time=0.75, memory=0.72),
        Variant("cut50", "apt_ds, 50 % cut", sparsity=0.5, time=0.56, memory=0.58),
        Variant("dense4", "apt_ds dense, 4 bit", bits=4),
        Variant("cut30in4", "apt_ds, 30 % cut, 4 bit", sparsity=0.3, bits=4),
    )
}


def absent(variant: Variant, config: Config) -> str:
    """The reason why this machine cannot measure a variant. Empty if it can."""
    if variant.bits == 16:
        return ""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    return "4 bits and ZeRO stage 3 exclude each other here" if stage(config) == 3 else ""


def chosen(names: list[str], config: Config) -> tuple[list[Variant], list[str]]:
    """The variants of `names`, LoRA first, and notes. No names: all variants that this machine can measure.

    Raises:
        UserError: a name is unknown, or this machine cannot measure it.
    """
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"--variants {name}: give some of {', '.join(VARIANTS)}")
        if reason := absent(VARIANTS[name], config):
            raise UserError(f"--variants {name}: {reason}")
    picked = [v for v in VARIANTS.values() if (v.name in names if names else not absent(v, config))]
    notes = [f"{v.what}: left out, {absent(v, config)}" for v in VARIANTS.values() if not names and absent(v, config)]
    return picked, notes


def options(variant: Variant, run: RunConfig) -> dict[str, object]:
    """The flags that turn a run into this variant."""
    if variant.scoring:
        mode = {"pruning": "gradual", "sparsity": 0.3, "rank_growth": "importance"}
    elif variant.sparsity:
        mode = {"pruning": "pretuning", "sparsity": variant.sparsity, "rank_growth": "none"}
    else:
        mode = {"pruning": "none", "sparsity": 0.0, "rank_growth": "none"}
    bits = {"base_bits": variant.bits} if variant.bits != 16 and not variant.peft else {}
    # a cut is measured without what precedes it
    return {"calibration_steps": 1, "pruning_phase": 1.0, "pruning_start": 0.0, "repair": "none"} | mode | bits
