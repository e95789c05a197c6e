"""A padded model is a stock one with the logits of the cut model, for every family (`export/padding.py`)."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.blocks import Anatomy, Axis, Sizes, block_slices, fused_axis
from apt_ds.models.export import padded_form, write
from apt_ds.models.export.padding import Padding
from apt_ds.models.weights import read_weights
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.models import test_export_tasks, test_families
from tests.models.test_architectures import dressed
from tests.pruning.test_masks import random_keep
from tests.support import tiny, tiny_experts, tiny_families

# hidden sizes that the heads of a stock encoder make
ENCODERS = [kind for kind in tiny.SMALL if not kind.startswith("t5")]


def encoder_keep(anatomy: Anatomy, cut: str) -> np.ndarray:
    """Blocks to keep: those of `keep_of`, but hidden dimensions for three heads."""
    keep = test_export_tasks.keep_of(anatomy, cut)
    keep[-anatomy.sizes.hidden :] = np.arange(anatomy.sizes.hidden) < 24
    for site, span in block_slices(anatomy.sizes):
        if site >= 0 and anatomy.kind(site) == "head" and keep[span].sum() > 3:
            keep[span.start] = False
    return keep


def padded(model: PreTrainedModel, anatomy: Anatomy, keep: np.ndarray, folder: Path, task: str) -> PreTrainedModel:
    """Cut the model in place, write it padded, and read that with a stock class."""
    base = copy.deepcopy(model.config)
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    result = write.export(model, smaller, base, None, tiny.tokenizer(), folder, task, form="padded")
    assert result.format == "padded" and 0 < result.padding_bytes < result.bytes
    assert not list(folder.glob("*.py"))
    eager = {} if model.config.model_type == "modernbert" else {"attn_implementation": "eager"}
    read, report = AUTO_CLASSES[task].from_pretrained(folder, output_loading_info=True, **eager)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert getattr(transformers, type(read).__name__, None) is type(read)
    return read.eval()


@pytest.mark.parametrize(("row", "cut"), [key for key in test_families.WRITTEN if key[1] != "uniform"])
def test_a_padded_decoder_has_the_logits_of_the_cut_one(row: str, cut: str, tmp_path: Path) -> None:
    model, anatomy = test_families.adapted(row)
    keep = test_families.keep_of(anatomy, model.config, cut)
    read = padded(model, anatomy, keep, tmp_path / "model", LANGUAGE_MODEL)
    torch.testing.assert_close(read(tiny.ids()).logits, model(tiny.ids()).logits, atol=2e-5, rtol=1e-5)
    expected = model.generate(tiny.ids(2), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(read.generate(tiny.ids(2), max_new_tokens=4, do_sample=False, eos_token_id=None), expected)


@pytest.mark.parametrize("kind", tiny.SMALL)
def test_a_padded_encoder_or_t5_answers_as_the_cut_one(kind: str, tmp_path: Path) -> None:
    model, anatomy = dressed(kind)
    cut = "emptied" if kind in test_export_tasks.EMPTIED else "adaptive"
    keep = encoder_keep(anatomy, cut) if kind in ENCODERS else test_export_tasks.keep_of(anatomy, cut)
    read = padded(model, anatomy, keep, tmp_path / "model", tiny.TASKS[kind])
    torch.testing.assert_close(tiny.answer(read), tiny.answer(model), atol=1e-5, rtol=1e-5)
