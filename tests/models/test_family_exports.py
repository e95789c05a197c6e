"""What is written of every row of `tests/support/tiny_families.py`, loaded where this package is not installed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.batching import collate
from apt_ds.models.architectures import architecture_of
from apt_ds.models.export import write
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.models.test_families import CAUSAL, EXAMPLES, WRITTEN, adapted, every_row, keep_of, kernels_of
from tests.support import tiny, tiny_families
from tests.support.elsewhere import ELSEWHERE

PADDING = 3  # tokens on the left of the padded rows
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
    answer = {}
    for attention in kernels:
        model, report = load("AutoModelForCausalLM", attn_implementation=attention)
        wrong = {key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        assert not any(wrong.values()), (name, wrong)
        answer[attention] = model(ids).logits.detach()
    answer["class"] = type(model).__name__
    answer["cached"] = model.generate(ids, **greedy)
    answer["no cache"] = model.generate(ids, use_cache=False, **greedy)
    answer["static cache"] = model.generate(ids, cache_implementation="static", **greedy)
    answer["left padding"] = model.generate(padded, attention_mask=mask, **greedy)[:, padding:]
    base, report = load("AutoModel")
    assert not report["missing_keys"] and set(report["unexpected_keys"]) <= {"lm_head.weight"}, (name, report)
    answer["base"] = torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    if classifier:
        scores, report = load("AutoModelForSequenceClassification", num_labels=3)
        assert set(report["missing_keys"]) == {"score.weight"}, (name, report)
        scores.config.pad_token_id = 0
        answer["classifier"] = tuple(scores(ids).logits.shape)
        answer["classifier's base"] = torch.equal(scores.model(ids).last_hidden_state, base(ids).last_hidden_state)
    model.save_pretrained(folder + "-again")
    again = type(model).from_pretrained(folder + "-again")
    answer["saved again"] = torch.equal(again(ids).logits, model(ids).logits)
    answers[name] = answer
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
