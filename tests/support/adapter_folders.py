"""Cut models with trained adapters, written as a merged model, a base and a PEFT folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from apt_ds.models.adapter import adapters
from apt_ds.models.base import Base
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import write
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.training.final_model import write_final_adapters
from tests.models import test_architectures, test_export_tasks, test_families
from tests.support import tiny, tiny_families


class Written(NamedTuple):
    """A trained model, its blocks and its task type. `folder` has `model/`, `base/` and `adapters/`."""

    model: PreTrainedModel
    anatomy: Anatomy
    task: str
    folder: Path


def write_cut(row: str, structure: str, folder: Path) -> Written:
    """Cut a tiny model, give its adapters different ranks, and write all three folders.

    Args:
        row: a row of `tiny_families` or a kind of `tiny.SMALL`.
        structure: 'uniform', 'adaptive', 'emptied', or 'whole' for a model that is not cut.
        folder: the folder to write to.
    """
    decoder = row in tiny_families.FAMILIES
    model, anatomy = test_families.adapted(row) if decoder else test_architectures.dressed(row)
    task = tiny.TASKS.get(row, "language model")
    config = copy.deepcopy(model.config)
    original = Base(str(folder / "original"), config, tiny.tokenizer(), anatomy, task)
    if structure == "whole":
        write.export(model, anatomy, config, None, tiny.tokenizer(), folder / "original", task=task, merge=False)
        keep = None
    elif decoder:
        keep = test_families.keep_of(anatomy, config, structure)
    else:
        keep = test_export_tasks.keep_of(anatomy, "alike" if structure == "uniform" else structure)
    generator = torch.Generator().manual_seed(1)
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, generator)
    kept = [path for path, _ in adapters(model)]
    apply_plan(model, smaller, Plan(grow={kept[0]: 5, kept[-1]: 4}), None, generator)
    for _, layer in adapters(model):
        layer.lora_B.data.normal_(0, 0.1)
    write.export(model, smaller, config, None, tiny.tokenizer(), folder / "model", task=task)
    write_final_adapters(model, smaller, original, None, folder, 16, torch.float32)
    return Written(model.eval(), smaller, task, folder)
