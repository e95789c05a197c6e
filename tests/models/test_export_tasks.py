"""BERT, RoBERTa and T5 as written: the training model's answers, from stock classes where those can hold the sizes."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.models.export import configs, modeling_apt_t5, write
from apt_ds.models.export.modeling_apt_t5 import AptT5ForConditionalGeneration
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.models.test_architectures import dressed
from tests.pruning.test_masks import random_keep
from tests.support import tiny
from tests.support.elsewhere import ELSEWHERE

GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
CUTS = ("neurons", "alike", "adaptive")
EMPTIED = ("bert-classes", "roberta-answers")  # kinds that are also written with empty sublayers
# what loads where apt_ds is not there; prints what from_pretrained found wrong
LOAD = """
import json, sys, torch, transformers
sys.modules["apt_ds"] = None
def check_base(name, folder, inputs, model):
    "The base model, a classifier on it, and a copy that is saved again."
    def load(auto, place=folder):
        return getattr(transformers, auto).from_pretrained(place, trust_remote_code=True, output_loading_info=True,
            attn_implementation=attention)
    base, report = load("AutoModel")
    absent = {key for key in report["missing_keys"] if "pooler" not in key}
    assert not absent and not report["mismatched_keys"], (name, report)
    own = model.base_model if hasattr(model, model.base_model_prefix) else model
    hidden = own(**inputs, output_hidden_states=True)
    hidden = hidden.get("decoder_hidden_states", hidden.get("hidden_states"))[-1]
    assert torch.equal(base(**inputs).last_hidden_state, hidden), name
    if "AutoModelForSequenceClassification" in model.config.auto_map:
        classifier, report = load("AutoModelForSequenceClassification")
        own = ("classif", "head", "pooler", "score")
        assert not report["mismatched_keys"], (name, report)
        assert all(any(part in key for part in own) for key in report["missing_keys"]), (name, report)
    model.save_pretrained(folder + "-again")
    again, report = load(auto, folder + "-again")
    assert not report["missing_keys"] and torch.equal(again(**inputs)[0], model(**inputs)[0]), (name, report)
calls, found = torch.load(sys.argv[1]), {}
for name, (auto, folder, bundled, inputs, greedy) in calls.items():
    # some classes have one attention of their own
    attentions = ("eager",) if "deberta" in name else ("eager", "sdpa")
    for attention in attentions:
        model, told = getattr(transformers, auto).from_pretrained(
            folder, trust_remote_code=bundled, attn_implementation=attention, output_loading_info=True)
        bad = {key: sorted(map(str, told[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        assert not any(bad.values()), (name, bad)
        answer = dict(model(**inputs)) if attention == "eager" else {"logits": model(**inputs)[0]}
        text = model.generate(inputs["input_ids"], **greedy) if model.can_generate() else None
        found[name, attention] = (model.__class__.__name__, answer, text)
    if bundled:
        check_base(name, folder, inputs, model)
torch.save({key: (kind, {n: v for n, v in answer.items() if isinstance(v, torch.Tensor)}, text)
            for key, (kind, answer, text) in found.items()}, sys.argv[1] + ".out")
"""


def keep_of(anatomy: Anatomy, cut: str) -> np.ndarray:
    """Blocks to keep: fewer neurons everywhere; as many of everything everywhere; what comes; no block of some."""
    if cut in ("adaptive", "emptied"):
        keep = random_keep(anatomy, 1)
        for site in (0, 3) if cut == "emptied" else ():
            keep[dict(block_slices(anatomy.sizes))[site]] = False
        return keep
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        kind = anatomy.kind(site)
        if kind == "neuron":
            keep[span] = np.arange(span.stop - span.start) < 20
        elif cut == "alike" and kind == "hidden":
            keep[span] = np.arange(span.stop - span.start) % 2 == 1
        elif cut == "alike":
            # the self-attentions of a stack agree, a cross-attention may have others
            own = {"encoder": [1, 3], "decoder": [0, 3]}.get(anatomy.sites[site].consumer.split(".")[0], [1, 2])
            keep[span] = np.isin(np.arange(4), own if "EncDec" not in anatomy.sites[site].consumer else [site % 3, 3])
    return keep


def inputs_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Random tokens, the second half of the last row padded away."""
    tokens = tiny.ids(3)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs["attention_mask"][-1, 6:] = 0
    if model.config.model_type == "t5":
        inputs["decoder_input_ids"] = tiny.ids(3, 7, seed=1)
    return inputs


def exported(kind: str, cut: str, folder: Path) -> PreTrainedModel:
    """The cut model, also written to `folder`."""
    model, anatomy = dressed(kind)
    base = model.config.__class__(**model.config.to_dict())
    smaller = apply_plan(model, anatomy, Plan(keep=keep_of(anatomy, cut)), None, torch.Generator())
    generation = model.generation_config if model.can_generate() else None
    write.export(model, smaller, base, generation, tiny.tokenizer(), folder, task=tiny.TASKS[kind])
    return model


def answer_of(model: PreTrainedModel, attention: str) -> Any:
    """What the training model answers. Kernels agree on text only: a token of padding may see nothing."""
    if model.config.model_type == "modernbert":
        model.set_attn_implementation(attention)
    return model(**inputs_of(model))


def loaded_elsewhere(calls: dict[str, Any], folder: Path) -> dict[tuple[str, str], Any]:
    """What a fresh process without apt_ds loads and answers."""
    torch.save(calls, folder / "calls.pt")
    ELSEWHERE.run(LOAD, folder / "calls.pt")
    return torch.load(folder / "calls.pt.out")


def test_what_is_written_answers_as_the_training_model_without_apt_ds(tmp_path: Path) -> None:
    cases = [(kind, cut) for kind in tiny.SMALL for cut in CUTS] + [(kind, "emptied") for kind in EMPTIED]
    models = {f"{k}-{c}": exported(k, c, tmp_path / f"{k}-{c}") for k, c in cases}
    calls = {}
    for name, model in models.items():
        kind, _, cut = name.rpartition("-")
        auto = AUTO_CLASSES[tiny.TASKS[kind]].__name__
        calls[name] = (auto, str(tmp_path / name), cut in ("adaptive", "emptied"), inputs_of(model), GREEDY)
        assert bool(list((tmp_path / name).glob("*.py"))) == (cut in ("adaptive", "emptied"))
    for (name, attention), (class_name, answer, text) in loaded_elsewhere(calls, tmp_path).items():
        model, cut = models[name], name.rpartition("-")[2]
        assert class_name == ("Apt" if cut in ("adaptive", "emptied") else "") + type(model).__name__
        config = json.loads((tmp_path / name / "config.json").read_text(encoding="utf8"))
        assert config["architectures"] == [class_name]
        expected = answer_of(model, attention)
        for key, value in answer.items():
            assert torch.allclose(expected[key if key in expected else 0], value, atol=1e-5), (name, attention, key)
        if text is not None:
            assert torch.equal(text, model.generate(tiny.ids(3), **GREEDY)), (name, attention)


def test_heads_of_one_stack_that_differ_need_the_bundled_file(tmp_path: Path) -> None:
    model, anatomy = dressed("t5")
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if anatomy.kind(site) == "head":
            keep[span.start + site % 4] = False
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    form = configs.written(model, tiny.small("t5").config, smaller, tiny.TASKS["t5"])
    assert form.modules == (modeling_apt_t5,) and form.config.num_heads == 4
    assert form.config.encoder_layer_heads == [[1, 2, 3], [0, 1, 3]]
    assert form.config.decoder_layer_cross_heads == [3, 3]


@pytest.mark.parametrize("cut", ["alike", "adaptive"])
def test_a_t5_with_an_output_layer_of_its_own_keeps_it(cut: str, tmp_path: Path) -> None:
    values = tiny.small("t5-gated").config.to_dict() | {"tie_word_embeddings": False}
    values.pop("scale_decoder_outputs")
    base = T5Config(**values)
    model = T5ForConditionalGeneration(base).eval()
    assert not base.scale_decoder_outputs
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    anatomy = anatomy_of(base, tiny.TASKS["t5"])
    architecture_of(base).prepare(model, anatomy)
    smaller = apply_plan(model, anatomy, Plan(keep=keep_of(anatomy, cut)), None, torch.Generator())
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model", task=tiny.TASKS["t5"])
    names = set(load_file(tmp_path / "model" / "model.safetensors"))
    assert {"shared.weight", "lm_head.weight"} <= names and "encoder.embed_tokens.weight" not in names
    kind = T5ForConditionalGeneration if cut == "alike" else AptT5ForConditionalGeneration
    loaded = kind.from_pretrained(tmp_path / "model")
    assert not loaded.config.scale_decoder_outputs
    inputs = inputs_of(model)
    assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5)


def test_labels_are_those_of_the_trained_model(tmp_path: Path) -> None:
    model, anatomy = dressed("bert-classes")
    base = model.config.__class__(**model.config.to_dict())
    names = {0: "no", 1: "yes"}
    model.config.id2label, model.config.label2id = names, {name: i for i, name in names.items()}
    write.export(model, anatomy, base, None, tiny.tokenizer(), tmp_path / "model", task=tiny.TASKS["bert-classes"])
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf8"))
    assert config["id2label"] == {"0": "no", "1": "yes"} and config["label2id"] == {"no": 0, "yes": 1}


def files_beside(path: Path) -> set[str]:
    """The files beside a module that it imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf8")))
    return {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level}


FILES = sorted(path for path in Path(configs.__file__).parent.glob("*apt_*.py"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_bundled_files_need_torch_and_transformers_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    absolute = [node for node in imports if isinstance(node, ast.ImportFrom) and not node.level]
    names |= {(node.module or "").split(".")[0] for node in absolute}
    # transformers requires huggingface_hub
    assert names <= {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub"}
    beside = files_beside(path)
    assert beside <= {"apt_layer_sizes", "apt_emptied_sublayers", "apt_expert_sizes"}
    # transformers 4 copies the files that the modelling file itself names
    if path.stem.startswith("modeling"):
        assert beside >= {other for name in beside for other in files_beside(path.with_name(f"{name}.py"))}
