"""The laws of the house for every row of `tests/support/tiny_families.py` (METHOD.md sections 1 to 3, 5 and 8)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from tests.support.elsewhere import ELSEWHERE

ROWS = tuple(tiny_families.FAMILIES)
STRUCTURES = ("uniform", "adaptive")
EMPTIED = ("llama3", "qwen2", "granite")  # rows whose models are also written with empty sublayers
WRITTEN = [(row, structure) for row in ROWS for structure in STRUCTURES] + [(row, "emptied") for row in EMPTIED]
CAUSAL = TASK_LOSSES[LANGUAGE_MODEL]
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
PADDING = 3  # tokens on the left of the padded rows
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


GEMMA = ("sliding_window", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping", "hidden_activation")
# run where apt_ds cannot be imported: (folder, bundled code, ...) of each model, and the tokens, to its answers
ANSWERS = """
import sys, torch, transformers
sys.modules["apt_ds"] = None
folders, ids, padding = torch.load(sys.argv[1])
padded = torch.cat([torch.full((len(ids), padding), 0), ids], 1)
mask = (torch.arange(padded.shape[1]) >= padding).long().expand_as(padded)
greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
answers = {}
for name, (folder, bundled, classifier, kernels) in folders.items():
    def load(auto, **more):
        return getattr(transformers, auto).from_pretrained(
            folder, trust_remote_code=bundled, output_loading_info=True, **more)
    found = {}
    for attention in kernels:
        model, report = load("AutoModelForCausalLM", attn_implementation=attention)
        wrong = {key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        assert not any(wrong.values()), (name, wrong)
        found[attention] = model(ids).logits.detach()
    found["class"] = type(model).__name__
    found["cached"] = model.generate(ids, **greedy)
    found["no cache"] = model.generate(ids, use_cache=False, **greedy)
    found["static cache"] = model.generate(ids, cache_implementation="static", **greedy)
    found["left padding"] = model.generate(padded, attention_mask=mask, **greedy)[:, padding:]
    base, report = load("AutoModel")
    assert not report["missing_keys"] and set(report["unexpected_keys"]) <= {"lm_head.weight"}, (name, report)
    found["base"] = torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    if classifier:
        scores, report = load("AutoModelForSequenceClassification", num_labels=3)
        assert set(report["missing_keys"]) == {"score.weight"}, (name, report)
        scores.config.pad_token_id = 0
        found["classifier"] = tuple(scores(ids).logits.shape)
        found["classifier's base"] = torch.equal(scores.model(ids).last_hidden_state, base(ids).last_hidden_state)
    model.save_pretrained(folder + "-again")
    again = type(model).from_pretrained(folder + "-again")
    found["saved again"] = torch.equal(again(ids).logits, model(ids).logits)
    answers[name] = found
torch.save(answers, sys.argv[1] + ".out")
"""
Exported = dict[tuple[str, str], tuple[PreTrainedModel, Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """(row, structure) to the cut model with adapters, its folder, and the answers of what a clean process loads."""
    place = tmp_path_factory.mktemp("families")
    models, folders = {}, {}
    for row, structure in WRITTEN:
        model, anatomy = adapted(row)
        base = copy.deepcopy(model.config)
        keep = keep_of(anatomy, base, structure)
        smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
        folder = place / f"{row}-{structure}"
        write.export(model, smaller, base, model.generation_config, tiny.tokenizer(), folder)
        models[row, structure] = model, folder
        written = json.loads((folder / "config.json").read_text(encoding="utf8"))
        classifier = written["model_type"].removeprefix("apt_") not in tiny_families.NO_CLASSIFIER
        folders[row, structure] = str(folder), structure != "uniform", classifier, kernels_of(base)
    torch.save((folders, tiny.ids(2), PADDING), place / "calls.pt")
    ELSEWHERE.run(ANSWERS, place / "calls.pt")
    answers = torch.load(place / "calls.pt.out")
    yield {key: (*value, answers[key]) for key, value in models.items()}


@pytest.mark.parametrize(("row", "structure"), WRITTEN)
def test_an_exported_model_is_the_training_model(row: str, structure: str, exported: Exported) -> None:
    """Adapters are merged, and the folder loads where this package is not installed."""
    model, folder, answers = exported[row, structure]
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    stock = architecture_of(model.config).stock_classes[LANGUAGE_MODEL]
    name = tiny_families.WRITTEN_AS.get(row, stock) if structure == "uniform" else f"Apt{stock}"
    assert answers["class"] == config["architectures"][0] == name
    assert bool(list(folder.glob("*.py"))) == (structure != "uniform") == ("per_layer_config" in config)
    for attention in kernels_of(model.config):
        torch.testing.assert_close(answers[attention], model(tiny.ids(2)).logits, atol=2e-5, rtol=1e-5)
    assert answers["base"] and answers["saved again"] and answers.get("classifier's base", True)
    assert answers.get("classifier", (2, 3)) == (2, 3)


@pytest.mark.parametrize(("row", "structure"), WRITTEN)
def test_an_exported_model_generates(row: str, structure: str, exported: Exported) -> None:
    """The same tokens with and without a cache, with padding on the left, and as the training model."""
    model, _, answers = exported[row, structure]
    expected = model.generate(tiny.ids(2), max_new_tokens=6, do_sample=False, eos_token_id=None)
    for way in ("cached", "no cache", "static cache", "left padding"):
        assert torch.equal(answers[way], expected), way


@every_row
def test_a_model_with_sizes_by_layer_loads_here_without_its_code(row: str, exported: Exported) -> None:
    """The registered classes have the sizes, and the loss at the head is right for them too."""
    model, folder, _ = exported[row, "adaptive"]
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert type(loaded).__module__.startswith("apt_ds.models.export.")
    assert CAUSAL.check(loaded, torch.device("cpu"))
    loaded.requires_grad_(False)
    batch = collate(EXAMPLES, 0)
    torch.testing.assert_close(CAUSAL.summed_loss(loaded, batch), CAUSAL.summed_loss(model, batch))


def test_the_sizes_of_each_layer_are_in_transformers_own_field_too(exported: Exported) -> None:
    model, folder, _ = exported["qwen3", "adaptive"]
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    for number, layer in enumerate(model.model.layers):
        sizes = config["per_layer_config"][str(number)]
        assert sizes["num_key_value_heads"] * config["head_dim"] == layer.self_attn.k_proj.out_features
        assert sizes["num_attention_heads"] * config["head_dim"] == layer.self_attn.q_proj.out_features
        assert sizes["intermediate_size"] == layer.mlp.up_proj.out_features


def test_what_a_family_adds_survives_the_cut(exported: Exported) -> None:
    """Windows, layers without positions, and factors stay. Both structures state the size of a head."""
    fields = {
        "mistral-window": ("sliding_window",),
        "ministral": ("sliding_window", "layer_types"),
        "qwen2-window": ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
        "smollm3": ("no_rope_layers",),
        "granite": ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
        "llama3": ("rope_parameters",),
        "gemma2": (*GEMMA, "attn_logit_softcapping", "rope_parameters"),
        "gemma3": (*GEMMA, "rope_parameters"),
        "phi3": ("sliding_window", "rope_parameters"),
        "phi4": ("rope_parameters", "original_max_position_embeddings", "max_position_embeddings"),
    }
    for (row, structure), (_, folder, _) in exported.items():
        before, after = tiny_families.FAMILIES[row](), json.loads((folder / "config.json").read_text(encoding="utf8"))
        for name in fields.get(row, ()):
            assert after[name] == getattr(before, name), (row, structure, name)
        assert after["head_dim"] == (
            getattr(before, "head_dim", None) or before.hidden_size // before.num_attention_heads
        ), (row, structure)


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
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if site >= 0:
            keep[span.start : span.start + (1 if anatomy.kind(site) == "head" else 64)] = False
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
