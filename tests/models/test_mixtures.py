"""The laws of the house for mixtures of experts: prices, masked equals cut, growth, scores, export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices, kept_sizes
from apt_ds.models.export import write
from apt_ds.models.export.configs import writable_sizes
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.expert_counts import best_blocks
from apt_ds.pruning.layer_sizes import describe
from apt_ds.pruning.limits import Rules
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.salience import Salience, add_up_experts
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.models.test_export_tasks import loaded_elsewhere
from tests.support import tiny, tiny_experts

FAMILIES = tuple(tiny_experts.FAMILIES)


def priced(model: PreTrainedModel, anatomy: Anatomy) -> int:
    """Counted parameters of attentions and experts."""
    paths = {path for paths in anatomy.targets.values() for path in paths}
    linear = sum(model.get_submodule(path).weight.numel() for path in paths)
    mixtures = [model.get_submodule(mixture.path) for mixture in anatomy.experts]
    return linear + sum(m.gate_up_proj.numel() + m.down_proj.numel() for m in mixtures)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_names_every_parameter_and_counts_it(family: str) -> None:
    model = tiny_experts.model(family)
    anatomy = anatomy_of(model.config)
    named = {slot.path for slot in anatomy.slots} | {mixture.path for mixture in anatomy.experts}
    assert {name.rpartition(".")[0] for name, _ in model.named_parameters()} == named
    for path in (*anatomy.writers, *anatomy.readers, *anatomy.norms, *anatomy.weighted_norms, *anatomy.layers):
        model.get_submodule(path)
    total = anatomy.num_parameters(anatomy.sizes)
    assert total == priced(model, anatomy)
    prices = anatomy.params_per_block(anatomy.sizes)
    where = dict(block_slices(anatomy.sizes))
    for site, span in where.items():
        keep = np.ones(anatomy.sizes.total(), dtype=bool)
        keep[span.start] = False
        for mixture in anatomy.experts:
            if mixture.expert_site == site:
                # the neurons of an expert go with it
                start = where[mixture.neuron_site].start
                keep[start : start + tiny_experts.NEURONS] = False
        assert total - anatomy.num_parameters(kept_sizes(anatomy.sizes, keep)) == prices[span.start]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_masked_equals_cut(family: str, structure: str) -> None:
    model, anatomy = tiny_experts.dressed(family, norm_topk_prob=structure == "uniform")
    keep = tiny_experts.keep_of(anatomy, structure)
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    masks = Masks(anatomy)
    masks.install(masked)
    assert torch.equal(tiny_experts.answer(masked), tiny_experts.answer(model))
    masks.set(keep.astype(float))
    smaller = apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    assert torch.allclose(tiny_experts.answer(masked), tiny_experts.answer(cut), atol=1e-5)
    assert not torch.allclose(tiny_experts.answer(masked), tiny_experts.answer(model), atol=1e-2)
    assert smaller.num_parameters(smaller.sizes) == priced(cut, smaller)
    # and a second cut of what remains: other experts, and the best 8 neurons of each
    numbers = np.array([1, 2, 8, 1, 2, 8, 8])
    again = best_blocks(np.random.default_rng(3).random(smaller.sizes.total()), smaller, numbers)
    second = Masks(smaller)
    second.install(cut)
    second.set(again.astype(float))
    expected = tiny_experts.answer(cut)
    second.remove()
    apply_plan(cut, smaller, Plan(keep=again), None, torch.Generator())
    assert torch.allclose(expected, tiny_experts.answer(cut), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_masks_reach_the_cut_without_a_jump(family: str) -> None:
    model, anatomy = tiny_experts.dressed(family)
    masks = Masks(anatomy)
    masks.install(model)
    where = dict(block_slices(anatomy.sizes))
    outputs = []
    for value in (1e-4, 1e-6, 0.0):
        values = np.ones(anatomy.sizes.total())
        values[where[HIDDEN].start : where[HIDDEN].start + 8] = value
        for mixture in anatomy.experts:
            values[where[mixture.expert_site].start] = value
            values[where[mixture.neuron_site].stop - 5 :][:5] = value
        masks.set(values)
        outputs.append(tiny_experts.answer(model))
    assert (outputs[0] - outputs[2]).abs().max() < 5e-3
    assert (outputs[1] - outputs[2]).abs().max() < 5e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_growth_changes_nothing_a_model_says(family: str) -> None:
    model, anatomy = tiny_experts.dressed(family)
    before = tiny_experts.answer(model)
    paths = [path for path, _ in adapter.adapters(model)]
    apply_plan(model, anatomy, Plan(grow=dict.fromkeys(paths[::2], 6)), None, torch.Generator().manual_seed(0))
    assert set(adapter.ranks(model).values()) == {3, 6}
    assert torch.allclose(tiny_experts.answer(model), before, atol=1e-6)


def scores(model: PreTrainedModel, anatomy: Anatomy, product: str, rows: list[slice], outlier: str) -> np.ndarray:
    """Scores of one step whose three rows come in these micro-batches. The last tokens of a row are padding."""
    salience = Salience(anatomy, 0.0, outlier, 0.1, torch.device("cpu"), product)
    salience.install(model)
    mask = torch.ones(3, 11)
    mask[1, 7:] = 0
    for row in rows:
        salience.begin(mask[row], torch.float32)
        (model(tiny.ids()[row]).logits * mask[row].unsqueeze(2)).square().sum().backward()
        salience.end()
    salience.remove()
    if outlier != "off":
        salience.measure_outliers(model)
    salience.update(1.0)
    return salience.scores()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("product", ["per_example", "batch"])
def test_scores_do_not_depend_on_the_split_and_an_expert_has_those_of_its_neurons(family: str, product: str) -> None:
    model, anatomy = tiny_experts.dressed(family)
    together = scores(model, anatomy, product, [slice(0, 3)], "off")
    apart = scores(model, anatomy, product, [slice(0, 2), slice(2, 3)], "off")
    assert np.allclose(together, apart, rtol=1e-3, atol=1e-5)
    where = dict(block_slices(anatomy.sizes))
    for mixture in anatomy.experts:
        neurons = together[where[mixture.neuron_site]].reshape(mixture.shape(anatomy.sizes))
        assert (neurons > 0).any()
        assert np.allclose(together[where[mixture.expert_site]], neurons.sum(1), rtol=1e-5)
    with_outliers = scores(model, anatomy, product, [slice(0, 3)], "normalized")
    assert np.isfinite(with_outliers).all() and (with_outliers >= together - 1e-6).all()


def test_an_expert_that_no_token_reaches_scores_nothing() -> None:
    model, anatomy = tiny_experts.dressed("mixtral")
    where = dict(block_slices(anatomy.sizes))
    masks = Masks(anatomy)
    values = np.ones(anatomy.sizes.total())
    values[where[1].start + 2] = 0.0
    masks.install(model)
    masks.set(values)
    expert_scores = scores(model, anatomy, "per_example", [slice(0, 3)], "off")[where[1]]
    assert expert_scores[2] == 0.0 and (np.delete(expert_scores, 2) > 0).all()


def test_what_is_written_answers_as_the_training_model_without_apt_ds(tmp_path: Path) -> None:
    models, calls = {}, {}
    for family in FAMILIES:
        for structure in ("uniform", "adaptive"):
            model, anatomy = tiny_experts.dressed(family)
            keep = tiny_experts.keep_of(anatomy, structure)
            smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
            folder = tmp_path / f"{family}-{structure}"
            base = tiny_experts.model(family).config
            write.export(model, smaller, base, model.generation_config, tiny.tokenizer(), folder)
            models[folder.name] = model
            inputs: dict[str, Any] = {"input_ids": tiny.ids()}
            greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
            calls[folder.name] = ("AutoModelForCausalLM", str(folder), structure == "adaptive", inputs, greedy)
            names = set(load_file(folder / "model.safetensors"))
            # stock checkpoints have a matrix for each expert
            assert any(".experts.2." in name for name in names) == (structure == "uniform")
    for (name, attention), (class_name, answer, text) in loaded_elsewhere(calls, tmp_path).items():
        model = models[name]
        assert class_name == ("Apt" if name.endswith("adaptive") else "") + type(model).__name__
        assert torch.allclose(answer["logits"], tiny_experts.answer(model), atol=1e-5), (name, attention)
        assert torch.equal(text, model.generate(tiny.ids(), max_new_tokens=4, do_sample=False, eos_token_id=None))
    config = json.loads((tmp_path / "qwen3_moe-uniform" / "config.json").read_text(encoding="utf8"))
    assert "auto_map" not in config and config["num_local_experts"] == 3 and config["moe_intermediate_size"] == 8


def test_a_written_model_can_be_pruned_again(tmp_path: Path) -> None:
    model, anatomy = tiny_experts.dressed("qwen3_moe")
    keep = tiny_experts.keep_of(anatomy, "uniform")
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    write.export(model, smaller, tiny_experts.model("qwen3_moe").config, None, tiny.tokenizer(), tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert anatomy_of(config).sizes == smaller.sizes


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_sizes_of_a_published_model_can_be_written(structure: str) -> None:
    config = Qwen3MoeConfig(
        hidden_size=2048,
        num_hidden_layers=8,  # of 48
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=768,
        num_local_experts=128,
        num_experts_per_tok=8,
        vocab_size=1000,
    )
    anatomy = anatomy_of(config)
    drawn = torch.from_numpy(np.random.default_rng(0).exponential(size=anatomy.sizes.total()))
    add_up_experts(anatomy, drawn)
    kinds = ("heads", "neurons", "hidden", "experts")
    budget = 0.5 * anatomy.num_parameters(anatomy.sizes)
    keep = search(drawn.numpy(), anatomy, Rules(kinds, structure, 8, 8, writable_sizes(config)), budget)
    cut = anatomy.with_sizes(kept_sizes(anatomy.sizes, keep))
    assert 0.98 * budget < cut.num_parameters(cut.sizes) <= budget
    form = write.written(torch.nn.Module(), config, cut, LANGUAGE_MODEL)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(form.config)
    assert type(built).__name__ == ("Qwen3MoeForCausalLM" if structure == "uniform" else "AptQwen3MoeForCausalLM")
    assert priced(built, cut) == cut.num_parameters(cut.sizes)
    assert describe(cut, cut.sizes)["experts"]


def test_mixtures_that_are_not_supported_are_one_line() -> None:
    for changes in ({"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}):
        with pytest.raises(UserError, match=r"'qwen3_moe' with layers without experts .* must have experts"):
            anatomy_of(tiny_experts.model("qwen3_moe", **changes).config)
    for family, changes in (("mixtral", {}), ("qwen3_moe", {"use_sliding_window": True})):
        with pytest.raises(UserError, match=f"'{family}' with a sliding window of 64 tokens is not supported"):
            anatomy_of(tiny_experts.model(family, sliding_window=64, **changes).config)
    with pytest.raises(UserError, match=r"'olmoe': num_experts_per_tok .* is 6. It must be from 1 to .* experts, 5"):
        anatomy_of(tiny_experts.model("olmoe", num_experts_per_tok=6).config)
    for model_type in ("qwen3_vl_moe", "deepseek_v3"):
        with pytest.raises(
            UserError, match=rf"'{model_type}' is not supported as a language model; supported: .*olmoe"
        ):
            anatomy_of(AutoConfig.for_model(model_type))
