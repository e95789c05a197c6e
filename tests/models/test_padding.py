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
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.blocks import Anatomy, Axis, Sizes, block_slices, fused_axis
from apt_ds.models.export import write
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
    result = write.export(model, smaller, base, None, tiny.tokenizer(), folder, task=task, form="padded")
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


@pytest.mark.parametrize("family", tiny_experts.FAMILIES)
def test_a_padded_mixture_has_empty_neurons_but_no_empty_expert(family: str, tmp_path: Path) -> None:
    model, anatomy = tiny_experts.dressed(family)
    keep = tiny_experts.keep_of(anatomy, "uniform")
    where = dict(block_slices(anatomy.sizes))
    keep[where[-1]] = True  # OLMoE needs a hidden size that its heads make
    keep[where[0]] = True
    first = anatomy.experts[0]
    kept = keep[where[first.expert_site]]
    keep[where[first.neuron_site]] = (kept[:, None] & (np.arange(tiny_experts.NEURONS) % 2 == 0)).ravel()
    read = padded(model, anatomy, keep, tmp_path / "model", LANGUAGE_MODEL)
    torch.testing.assert_close(tiny_experts.answer(read), tiny_experts.answer(model), atol=2e-5, rtol=1e-5)


def test_layers_with_different_numbers_of_experts_are_refused(tmp_path: Path) -> None:
    model, anatomy = tiny_experts.dressed("mixtral")
    base, keep = copy.deepcopy(model.config), tiny_experts.keep_of(anatomy, "adaptive")
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    with pytest.raises(UserError, match=r"--export_format padded: a 'mixtral' .* different numbers of experts"):
        write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model", form="padded")
    assert not list(tmp_path.iterdir())


def test_hidden_sizes_that_no_heads_make_are_refused(tmp_path: Path) -> None:
    model, anatomy = dressed("bert-classes")
    base, keep = copy.deepcopy(model.config), test_export_tasks.keep_of(anatomy, "adaptive")
    keep[-anatomy.sizes.hidden :] = np.arange(anatomy.sizes.hidden) < 23
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    with pytest.raises(UserError, match=r"no number of heads, from . on, fits its 23 hidden dimensions; give adaptive"):
        write.export(
            model, smaller, base, None, tiny.tokenizer(), tmp_path, task=tiny.TASKS["bert-classes"], form="padded"
        )


def test_the_entries_of_a_block_go_to_its_place() -> None:
    """Head 0 of two is head 1 of three. A fused weight keeps its parts apart."""
    whole = anatomy_of(tiny.config())
    before, sizes = Sizes((2, 48, 2, 48), 32), Sizes((3, 50, 3, 50), 32)
    padding = Padding(whole, whole.with_sizes(before), sizes, {0: np.array([1, 2])})
    rows = torch.arange(1, 5.0)
    assert padding._spread(rows, 0, Axis(0, 2)).tolist() == [0, 0, 1, 2, 3, 4]
    assert padding._spread(rows, 0, fused_axis(0, 1, 1)).tolist() == [0, 1, 2, 0, 3, 4]
    assert padding._spread(rows[None], 1, Axis(2, 2)).tolist() == [[1, 2, 3, 4, 0, 0]]
    assert padding.changes("model.layers.0.mlp.up_proj.weight") and not padding.changes("model.norm.weight")
    assert not Padding(whole, whole, whole.sizes).changes("model.layers.0.mlp.up_proj.weight")


def test_every_form_of_equal_layers(tmp_path: Path) -> None:
    """Auto and stock are the same, padded adds nothing, adaptive takes sizes by layer."""
    model, anatomy = tiny.model(), anatomy_of(tiny.config())
    for form, written, padding in (("auto", "stock", 0), ("stock", "stock", 0), ("padded", "padded", 0)):
        result = write.export(model, anatomy, model.config, None, tiny.tokenizer(), tmp_path / form, form=form)
        assert (result.format, result.padding_bytes) == (written, padding)
    result = write.export(model, anatomy, model.config, None, tiny.tokenizer(), tmp_path / "own", form="adaptive")
    assert result.format == "adaptive" and (tmp_path / "own" / "modeling_apt_llama.py").is_file()
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    assert torch.equal(read(tiny.ids()).logits, model(tiny.ids()).logits)


def test_unequal_layers_are_no_stock_model(tmp_path: Path) -> None:
    model = tiny.model()
    base, anatomy = copy.deepcopy(model.config), anatomy_of(model.config)
    smaller = apply_plan(model, anatomy, Plan(keep=random_keep(anatomy, 1)), None, torch.Generator())
    with pytest.raises(UserError, match=r"--export_format stock: no stock class has the sizes .*\. Give padded"):
        write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model", form="stock")


def test_a_quantized_model_is_padded(tmp_path: Path) -> None:
    """Blocks of 64 weights stay whole, and zeros are zeros in 4 bits too."""
    sizes: dict[str, int] = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    plain = tiny_families.model("llama3", **sizes, head_dim=64)
    plain.save_pretrained(tmp_path / "base")
    model, _ = read_weights(str(tmp_path / "base"), torch.float32, "eager", bits=4)
    model.eval()
    anatomy = anatomy_of(plain.config)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    where = dict(block_slices(anatomy.sizes))
    keep[where[0].start] = keep[where[3].start : where[3].start + 64] = False
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    folders = {form: tmp_path / form for form in ("adaptive", "padded")}
    logits = {}
    for form, folder in folders.items():
        result = write.export(model, smaller, plain.config, None, tiny.tokenizer(), folder, bits=4, form=form)
        # half a byte for a zero, and 4 bytes in place of one for the scale of 64 numbers of the padded weights
        before, after = 3 * 128 * 128 + 3 * 192 * 128, 6 * 128 * 128 + 3 * 256 * 128
        cost = (after - before) // 2 + 4 * after // 64 - before // 64
        assert result.padding_bytes == (cost if form == "padded" else 0)
        logits[form] = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(tiny.ids()).logits
    torch.testing.assert_close(logits["padded"], logits["adaptive"], atol=1e-4, rtol=1e-4)
