"""Writes the folders of `tests/models/golden`: `python -m tests.support.golden_folders NAME`, one pair per format.

The folders have the format of the version that wrote them. Tests show that later versions still read it. A folder is
written once and never again. NAME is the version of the package, with a suffix where a version had several formats.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import block_slices
from apt_ds.models.export import write
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.pruning.test_masks import random_keep
from tests.support import tiny
from tests.support.paths import ROOT

PLACE = ROOT / "tests" / "models" / "golden"
ANSWERS = "answers.safetensors"  # input_ids, and the logits of the model that was written


def write_pair(place: Path) -> None:
    """Write a uniform and an adaptive LLaMA of random weights, each with its answers."""
    for structure in ("uniform", "adaptive"):
        model = tiny.model("mha", hidden_size=16, intermediate_size=24, tie_word_embeddings=structure == "uniform")
        base, anatomy = copy.deepcopy(model.config), anatomy_of(model.config)
        keep = random_keep(anatomy, 1)
        if structure == "uniform":
            for site, span in block_slices(anatomy.sizes):
                keep[span] = torch.arange(span.stop - span.start).numpy() < {"head": 1}.get(anatomy.kind(site), 12)
        smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
        folder = place / structure
        write.export(model, smaller, base, model.generation_config, tiny.tokenizer(), folder)
        ids = tiny.ids(2, 7)
        with torch.no_grad():
            save_file({"input_ids": ids, "logits": model(ids).logits}, folder / ANSWERS)


if __name__ == "__main__":
    write_pair(PLACE / sys.argv[1])
