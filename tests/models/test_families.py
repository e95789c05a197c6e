"""The laws of the house for every row of `tests/support/tiny_families.py` (METHOD.md sections 1 to 3, 5 and 8)."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.batching import collate
from apt_ds.data.packing import pack
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import Anatomy, block_slices, kept_sizes
from apt_ds.models.export import write
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.weights import read_weights
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.salience import Salience
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime.packed import QuantizedParameter
from tests.models.test_architectures import masses, priced
from tests.pruning.test_masks import random_keep
from tests.support import tiny, tiny_families
from tests.support.tiny_quantized import first_blocks_go

ROWS = tuple(tiny_families.FAMILIES)
STRUCTURES = ("uniform", "adaptive")
EMPTIED = ("llama3", "qwen2", "granite")  # rows whose models are also written with empty sublayers
WRITTEN = [(row, structure) for row in ROWS for structure in STRUCTURES] + [(row, "emptied") for row in EMPTIED]
CAUSAL = TASK_LOSSES[LANGUAGE_MODEL]
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
EXAMPLES = [
    {"input_ids": [5, 6, 7, 8, 9, 10, 11], "labels": [-100, -100, 7, 8, 9, 10, 11]},
    {"input_ids": [9, 4, 12], "labels": [-100, 4, 12]},
    {"input_ids": [13, 5, 14, 15, 16], "labels": [-100, 5, 14, 15, 16]},
]
every_row = pytest.mark.parametrize("row", ROWS)


def adapted(row: str) -> tuple[PreTrainedModel, Anatomy]:
    """A model of a row with adapters that do something, on all targets that it has."""
    model = tiny_families.model(row)
    anatomy = anatomy_of(model.config)
    architecture_of(model.config).prepare(model, anatomy)
    adapter.attach(model, anatomy, tuple(name for name in TARGETS if name in anatomy.targets), rank=3, seed=1)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    return model, anatomy


def keep_of(anatomy: Anatomy, config: PretrainedConfig, structure: str) -> np.ndarray:
    """Blocks to keep: random ones, or about half of the blocks of every sublayer and of the hidden dimensions.

    Emptied: no head of the first layer and no neuron of the second one.
    """
    keep = random_keep(anatomy, 1)
    if structure == "emptied":
        for site in (0, 3):
            keep[dict(block_slices(anatomy.sizes))[site]] = False
    if structure == "uniform":
        for _, span in block_slices(anatomy.sizes):
            keep[span] = np.arange(span.stop - span.start) < (span.stop - span.start) // 2 + 1
        # some families accept few hidden sizes beside their heads
        while not writable_sizes(config).holds(anatomy.with_sizes(kept_sizes(anatomy.sizes, keep))):
            keep[span.start + keep[span].sum()] = True
        assert not keep[span].all()
    return keep


def kernels_of(config: PretrainedConfig) -> tuple[str, ...]:
    """The attention kernels that a family has on a CPU."""
    return tuple(dict.fromkeys(("eager", architecture_of(config).attention(config, "sdpa"))))


def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(tiny.ids()).logits


@every_row
def test_the_table_names_every_parameter_and_counts_it(row: str) -> None:
    model = tiny_families.model(row)
    anatomy = anatomy_of(model.config)
    named = {slot.path for slot in anatomy.slots}
    assert {name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)} == named
    for path in (*anatomy.writers, *anatomy.readers, *anatomy.norms, *anatomy.layers):
        model.get_submodule(path)
    assert anatomy.num_parameters(anatomy.sizes) == priced(model, anatomy)
    prices = anatomy.params_per_block(anatomy.sizes)
    for _, span in block_slices(anatomy.sizes):
        keep = np.ones(anatomy.sizes.total(), dtype=bool)
        keep[span.start] = False
        fewer = anatomy.num_parameters(kept_sizes(anatomy.sizes, keep))
        assert anatomy.num_parameters(anatomy.sizes) - fewer == prices[span.start]


@every_row
def test_masked_equals_cut(row: str) -> None:
    model, anatomy = adapted(row)
    keep = random_keep(anatomy, 0)
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    masks = Masks(anatomy)
    masks.install(masked)
    assert torch.equal(logits(masked), logits(model))
    masks.set(keep.astype(float))
    smaller = apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    torch.testing.assert_close(logits(masked), logits(cut), atol=2e-5, rtol=1e-5)
    assert not torch.allclose(logits(masked), logits(model), atol=1e-2)
    assert smaller.num_parameters(smaller.sizes) == priced(cut, smaller)


@every_row
def test_growth_changes_nothing_a_model_says(row: str) -> None:
    model, anatomy = adapted(row)
    before = logits(model)
    paths = [path for path, _ in adapter.adapters(model)]
    apply_plan(model, anatomy, Plan(grow=dict.fromkeys(paths[::2], 6)), None, torch.Generator().manual_seed(0))
    assert set(adapter.ranks(model).values()) == {3, 6}
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@every_row
def test_scores_are_those_of_the_tokens_that_count(row: str) -> None:
    """Two rows have the same sums alone and beside a third that does not count."""
    sums = []
    for batch in (2, 3):
        model, anatomy = adapted(row)
        salience = Salience(anatomy, 0.85, "off", 1.0, torch.device("cpu"))
        salience.install(model.train())
        counted = torch.ones(batch, 11)
        counted[2:] = 0
        sums.append(masses(model, salience, counted, None, batch))
    assert (sums[0] > 0).all()
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-3, atol=1e-5)


@every_row
def test_the_loss_at_the_head_is_the_models_own(row: str) -> None:
    model, _ = adapted(row)
    model.get_output_embeddings().weight.requires_grad_(False)
    body = next(module.lora_B for _, module in adapter.adapters(model))
    assert CAUSAL.check(model, torch.device("cpu"))
    batch = collate(EXAMPLES, 0)
    at_head = CAUSAL.summed_loss(model, batch)
    own = model(input_ids=batch.input_ids, labels=batch.labels).loss * sum(map(CAUSAL.loss_denominator, EXAMPLES))
    torch.testing.assert_close(at_head, own)
    torch.testing.assert_close(*(torch.autograd.grad(loss, body)[0] for loss in (at_head, own)))


@every_row
def test_packed_rows_have_the_loss_of_separate_rows(row: str) -> None:
    model, _ = adapted(row)
    packed = pack(EXAMPLES, 0, 16)
    assert len(packed.input_ids) < len(EXAMPLES)
    separate = sum(CAUSAL.summed_loss(model, collate([example], 0)) for example in EXAMPLES)
    torch.testing.assert_close(CAUSAL.summed_loss(model, packed), separate)


@every_row
def test_gradient_checkpointing_changes_no_gradient(row: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, _ = adapted(row)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        CAUSAL.summed_loss(model.train(), collate(EXAMPLES, 0)).backward()
        gradients.append([module.lora_A.grad for _, module in adapter.adapters(model)])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


# rows and groups of columns are whole blocks of 64
LARGE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
QUANTIZED = [row for row in ROWS if row not in tiny_families.SMALL_ONLY]
# relative error of the logits of two to four random layers under NF4 and int8
ERROR = {4: 0.8, 8: 0.08}


@pytest.mark.parametrize("row", QUANTIZED)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_cut_and_written(row: str, bits: int, tmp_path: Path) -> None:
    """Biases and norms stay as they are. Where whole blocks go, a cut changes no more than the scales."""
    plain = tiny_families.model(row, **LARGE, head_dim=32)
    plain.save_pretrained(tmp_path / "base")
    reader = architecture_of(plain.config).training_classes.get(LANGUAGE_MODEL)
    model, missing = read_weights(str(tmp_path / "base"), torch.float32, "eager", bits=bits, model_class=reader)
    model.eval()
    anatomy, base = anatomy_of(model.config), copy.deepcopy(plain.config)
    assert not missing
    for path in (path for paths in anatomy.targets.values() for path in paths):
        assert isinstance(model.get_submodule(path).weight, QuantizedParameter)
    kept = {name for name, parameter in model.named_parameters() if not isinstance(parameter, QuantizedParameter)}
    assert all(torch.equal(model.get_parameter(name), plain.get_parameter(name)) for name in kept)
    error = (logits(model) - logits(plain)).norm() / logits(plain).norm()
    assert 0 < error < ERROR[bits]
    keep = first_blocks_go(anatomy)
    masks = Masks(anatomy)
    masks.install(model)
    masks.set(keep.astype(float))
    masked = logits(model)
    masks.remove()
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    assert (masked - logits(model)).norm() / masked.norm() < 0.05
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    torch.testing.assert_close(logits(written), logits(model), atol=1e-4, rtol=1e-4)
