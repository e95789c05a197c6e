"""A family is one spec: a made-up one goes from its blocks to an exported model, and no other module names a family."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import INSTRUCTIONS, LANGUAGE_MODEL
from apt_ds.models import adapter, architectures, loading
from apt_ds.models.architectures import REGISTRY, anatomy_of, architecture_of, find_architecture, llama
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.models.export import write
from apt_ds.models.export.configs import writable_sizes
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.pruning.test_masks import random_keep
from tests.support import tiny
from tests.support.paths import ROOT


class ShrewConfig(LlamaConfig):
    model_type = "shrew"


class ShrewForCausalLM(LlamaForCausalLM):
    config_class = ShrewConfig


# all that the package needs to know of the family: what differs from a LLaMA
SHREW = replace(llama.ARCHITECTURE, model_type="shrew", stock_classes={LANGUAGE_MODEL: "ShrewForCausalLM"})


def test_the_readme_of_the_package_has_the_same_spec() -> None:
    text = (ROOT / "apt_ds" / "models" / "README.md").read_text(encoding="utf8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["ARCHITECTURE"] == SHREW


@pytest.fixture
def shrew() -> Iterator[Architecture]:
    """The made-up family, known to transformers and to the package."""
    AutoConfig.register("shrew", ShrewConfig, exist_ok=True)
    AutoModelForCausalLM.register(ShrewConfig, ShrewForCausalLM, exist_ok=True)
    architectures.register(SHREW)
    yield SHREW
    del REGISTRY["shrew"]
    CONFIG_MAPPING._extra_content.pop("shrew")
    AutoModelForCausalLM._model_mapping._extra_content.pop(ShrewConfig)


def shrew_model() -> ShrewForCausalLM:
    """The weights of the tiny LLaMA."""
    values = tiny.config().to_dict()
    values.pop("model_type")
    model = ShrewForCausalLM(ShrewConfig(**values)).eval()
    model.load_state_dict(tiny.model().state_dict())
    return model


def keep_of(anatomy: Anatomy, structure: str) -> np.ndarray:
    """Blocks to keep: equal numbers at every sublayer, or random ones."""
    keep = random_keep(anatomy, 1)
    if structure == "uniform":
        for site, span in block_slices(anatomy.sizes):
            count = {"head": 1, "neuron": 20, "hidden": 18}[anatomy.kind(site)]
            keep[span] = np.arange(span.stop - span.start) < count
    return keep


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_a_made_up_family_needs_one_spec(shrew: Architecture, structure: str, tmp_path: Path) -> None:
    base = shrew_model()
    base.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    base_model = loading.find_base(str(tmp_path / "base"), INSTRUCTIONS)
    assert type(base_model.config) is ShrewConfig and base_model.task_type == LANGUAGE_MODEL
    anatomy = base_model.anatomy
    assert anatomy == anatomy_of(tiny.config())
    model = copy.deepcopy(base)
    shrew.prepare(model, anatomy)
    adapter.attach(model, anatomy, ("q", "v", "down"), 3, 0)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    keep = keep_of(anatomy, structure)
    masked = copy.deepcopy(model)
    masks = Masks(anatomy)
    masks.install(masked)
    masks.set(keep.astype(float))
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    expected = model(tiny.ids()).logits
    assert torch.allclose(masked(tiny.ids()).logits, expected, atol=1e-5)
    folder = tmp_path / "model"
    write.export(model, smaller, base_model.config, None, tiny.tokenizer(), folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    names = {"uniform": "ShrewForCausalLM", "adaptive": "AptLlamaForCausalLM"}
    assert type(loaded).__name__ == names[structure] == loaded.config.architectures[0]
    assert torch.allclose(loaded(tiny.ids()).logits, expected, atol=1e-5)
    if structure == "uniform":
        assert loading.find_base(str(folder)).anatomy.sizes == smaller.sizes


def test_writable_sizes_are_those_of_the_spec(shrew: Architecture) -> None:
    biased = shrew_model().config
    biased.attention_bias = True
    assert writable_sizes(biased).reason.startswith("LLaMA with attention_bias")
    assert writable_sizes(tiny.small("t5").config).reason == ""


def test_an_unregistered_family_is_refused(tmp_path: Path) -> None:
    assert find_architecture(ShrewConfig()) is None
    with pytest.raises(
        UserError, match="'shrew' is not supported as a language model; supported: gemma2, gemma3_text, "
    ):
        anatomy_of(ShrewConfig())
    with pytest.raises(UserError, match="'shrew' is not supported; supported: bert, deberta-v2"):
        architecture_of(ShrewConfig())


def test_a_model_type_is_registered_once(shrew: Architecture) -> None:
    architectures.register(shrew)
    with pytest.raises(ValueError, match="'shrew' is registered already"):
        architectures.register(replace(shrew, special_tokens=("eos_token",)))


@pytest.mark.parametrize("model_type", sorted(REGISTRY))
def test_a_spec_agrees_with_transformers(model_type: str) -> None:
    spec = REGISTRY[model_type]
    assert spec.model_type == model_type and set(spec.tasks.values()) == set(spec.stock_classes)
    config = AutoConfig.for_model(model_type)
    for task, name in spec.stock_classes.items():
        assert architectures.AUTO_CLASSES[task]._model_mapping[type(config)].__name__ == name
    for task, own_class in spec.own_classes.items():
        assert own_class.__name__ == f"Apt{spec.stock_classes[task]}"
        assert find_architecture(own_class.config_class()) is spec


# words that name a family, or a module of one
FAMILY = re.compile(
    r"llama|m[ai]n?istral|mixtral|granite|qwen|smollm3|gemma|olmo|phi3|bert|electra|\bt5|_t5|T5[A-Z_]"
    r"|self_attn|[qkvo]_proj|SelfAttention|DenseRelu",
    re.IGNORECASE,
)
# programs that serve models of all families, whose names hold that of one
PROGRAM = re.compile(r"x?llama[._-]?cpp|ollama|llama[_-]quantize", re.IGNORECASE)
# file below apt_ds: why it may name a family
ALLOWED = {
    "models/consumers.py": "which classes vLLM has, and how each reads sizes",
    "models/export/gguf_rules.py": "what llama.cpp can hold of each class",
    "models/export/gguf_layers.py": "the names that llama.cpp's converter has for weights",
    "models/export/gguf_vocabulary.py": "the names that llama.cpp's converter has for tokenizers",
    "models/export/gguf_worker.py": "the name of a type of llama.cpp",
    "models/export/gguf_quantizer.py": "what llama.cpp's quantizer does with one family",
    "models/export/version_4.py": "names of fields that transformers 4 reads, which differ by family",
    "config/presets.py": "a preset is a published model",
    "config/small_presets.py": "a preset is a published model",
    "analysis/bench/llamas.py": "shapes of published models",
    "analysis/bench/synthetic.py": "makes models of these shapes",
    "analysis/bench/decision_cost.py": "measures decisions on these shapes",
    "data/seq2seq.py": "the prompts that T5 was trained on",
    "training/datasets.py": "asks for these prompts",
}


def named_families(path: Path) -> list[str]:
    """What a module's names, imports and texts say of a family. Docstrings and help texts may explain one."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    words: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            # a text of several words is prose, for users
            words += [node.value] if " " not in node.value.strip() else []
        elif isinstance(node, ast.ImportFrom):
            words += [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            words += [alias.name for alias in node.names]
        elif isinstance(node, ast.Name):
            words.append(node.id)
        elif isinstance(node, ast.Attribute):
            words.append(node.attr)
    return [word for word in words if FAMILY.search(PROGRAM.sub("", word))]


def test_no_other_module_names_a_family() -> None:
    package = ROOT / "apt_ds"
    names = {path.relative_to(package).as_posix(): named_families(path) for path in sorted(package.rglob("*.py"))}
    own = {
        path
        for path in names
        if path.startswith(("models/architectures/", "models/export/modeling_apt_", "models/export/apt_"))
    }
    assert names["models/architectures/llama.py"] and names["models/export/modeling_apt_t5.py"]
    named = {path: words for path, words in names.items() if words and path not in own}
    assert {path: words for path, words in named.items() if path not in ALLOWED} == {}
    assert ALLOWED.keys() <= named.keys()
