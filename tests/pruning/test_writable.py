"""What the search returns can be written, loads without apt_ds, and computes the same, for the published LLaMAs."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

from apt_ds.analysis.bench.llamas import LLAMAS, llama_config
from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.architectures.decoder import head_dim_of
from apt_ds.models.architectures.llama import as_mistral
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.blocks import Anatomy, kept_sizes
from apt_ds.models.export import configs, write
from apt_ds.models.export.form import counts
from apt_ds.models.export.modeling_apt_llama import AptLlamaConfig
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.limits import Rules, default_align
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.models.test_architectures import dressed
from tests.models.test_export_tasks import answer_of, inputs_of, loaded_elsewhere
from tests.support import tiny
from tests.support.published import SHAPES, published_config
from tests.support.scaled_llamas import scaled_config

BLOCKS = (("heads",), ("neurons",), ("hidden",), ("heads", "neurons"), ("heads", "neurons", "hidden"))
STRUCTURES = ("uniform", "adaptive")
REMOVED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
CLASSES = {LlamaConfig: "LlamaForCausalLM", MistralConfig: "MistralForCausalLM", AptLlamaConfig: "AptLlamaForCausalLM"}
# what a cut changes, and what the class of a configuration decides
SIZES = {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"}
OWN = {"model_type", "architectures", "auto_map", "use_cache", "_name_or_path", "pretraining_tp", "attention_bias"}
OWN |= {"mlp_bias", "sliding_window", "layer_key_value_heads", "layer_intermediate_sizes", "per_layer_config"}
# what a Qwen2 has and the families that it is written as lack, and the other way round
QWEN2 = {"use_sliding_window", "max_window_layers", "layer_types", "embedding_multiplier", "residual_multiplier"}
QWEN2 |= {"logits_scaling", "attention_multiplier"}
LONG = ("phi-3-mini-128k", "phi-4-mini")
BIASES = ({"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True})


def keep_of(config: LlamaConfig, blocks: tuple[str, ...], structure: str, removed: float, align: int = 0) -> np.ndarray:
    """What the search keeps by random scores, bool [blocks]. align: 0 for the default."""
    anatomy = anatomy_of(config)
    align = align or default_align(anatomy)
    rules = Rules(blocks, structure, align, align, configs.writable_sizes(config))
    scores = np.random.default_rng(1).random(anatomy.sizes.total()) * anatomy.params_per_block(anatomy.sizes)
    return search(scores, anatomy, rules, (1 - removed) * anatomy.num_parameters(anatomy.sizes))


def cut(config: LlamaConfig, *choice: object) -> Anatomy:
    """The anatomy that such a search leaves."""
    anatomy = anatomy_of(config)
    return anatomy.with_sizes(kept_sizes(anatomy.sizes, keep_of(config, *choice)))


def check_config(base: LlamaConfig, anatomy: Anatomy, folder: Path) -> type:
    """Write a configuration and read it: the sizes of `anatomy`, all else as in `base`. Returns its class."""
    form = configs.written(nn.Module(), base, anatomy, LANGUAGE_MODEL)
    form.config.save_pretrained(folder)
    read = type(form.config).from_pretrained(folder) if form.modules else AutoConfig.from_pretrained(folder)
    stock = architecture_of(read).stock_classes[LANGUAGE_MODEL]
    assert type(read) is type(form.config) and read.architectures == [f"Apt{stock}" if form.modules else stock]
    heads, neurons = counts(anatomy, "head"), counts(anatomy, "neuron")
    queries = base.num_attention_heads // base.num_key_value_heads
    sizes = {"hidden_size": anatomy.sizes.hidden, "intermediate_size": max(neurons), "head_dim": head_dim_of(base)}
    sizes |= {"num_attention_heads": max(heads) * queries, "num_key_value_heads": max(heads)}
    assert {name: getattr(read, name) for name in SIZES} == sizes
    if form.modules:
        assert (read.layer_key_value_heads, read.layer_intermediate_sizes) == (heads, neurons)
    own = OWN | SIZES | (QWEN2 if base.model_type == "qwen2" and type(read) is not type(base) else set())
    before, after = ({k: v for k, v in c.to_dict().items() if k not in own} for c in (base, read))
    assert before == after
    return type(read)


def check_grid(names: list[str], removed: tuple[float, ...], folder: Path) -> dict[type, int]:
    """Every search that meets its budget ends in a configuration; how many of each class."""
    counts: dict[type, int] = {}
    for name, blocks, structure, fraction in itertools.product(names, BLOCKS, STRUCTURES, removed):
        config = llama_config(name, num_hidden_layers=2, dtype="bfloat16", attention_dropout=0.1, pad_token_id=7)
        try:
            anatomy = cut(config, blocks, structure, fraction)
        except UserError as error:
            # a third of a layer is attention, half at most
            assert len(blocks) == 1 and "cannot be met" in str(error)
            continue
        kind = check_config(config, anatomy, folder)
        assert structure == "adaptive" or kind is not AptLlamaConfig
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def test_every_choice_for_every_published_llama_can_be_written(tmp_path: Path) -> None:
    """The sizes are the published ones. No weight is needed."""
    counts = check_grid(list(LLAMAS), (0.1, 0.3, 0.5), tmp_path)
    assert set(counts) == set(CLASSES) and sum(counts.values()) > 300


@pytest.mark.slow
def test_every_choice_from_10_to_60_percent_can_be_written(tmp_path: Path) -> None:
    counts = check_grid(list(LLAMAS), REMOVED, tmp_path)
    assert set(counts) == set(CLASSES) and sum(counts.values()) > 500


@pytest.mark.parametrize("name", SHAPES)
def test_every_choice_for_every_published_decoder_can_be_written(name: str, tmp_path: Path) -> None:
    """Each configuration has the sizes of the cut, and all else as before. It stays in its family, but for a Qwen2."""
    config, checked = published_config(name), 0
    for blocks, structure, fraction in itertools.product(BLOCKS, STRUCTURES, (0.1, 0.5)):
        try:
            anatomy = cut(config, blocks, structure, fraction)
        except UserError as error:
            assert len(blocks) == 1
            few = structure == "uniform" and name in LONG and "written: Phi-3 with longrope needs" in str(error)
            assert few or "cannot be met" in str(error)
            continue
        read, checked = check_config(config, anatomy, tmp_path), checked + 1
        if read in (LlamaConfig, GraniteConfig) and config.model_type == "qwen2":
            assert set(blocks) - {"neurons"} and len(set(anatomy.sizes.counts)) == 2
            continue
        assert issubclass(read, type(config))
        equal = len(set(anatomy.sizes.counts)) == 2
        # layers that happen to be equal may have sizes that a stock configuration refuses
        assert (read is type(config)) == equal or (equal and structure == "adaptive")
    assert checked > (9 if name in LONG else 12)


def test_a_llama_7b_of_24_heads_is_a_mistral_and_of_16_a_llama(tmp_path: Path) -> None:
    config = llama_config("llama2-7b")
    anatomy = anatomy_of(config)
    for heads, kind in ((24, MistralConfig), (21, MistralConfig), (16, LlamaConfig)):
        counts = tuple(heads if site.kind == "head" else 8192 for site in anatomy.sites)
        smaller = anatomy.with_sizes(type(anatomy.sizes)(counts, 4096))
        assert check_config(config, smaller, tmp_path) is kind


@pytest.mark.parametrize("rope", ["linear", "dynamic", "yarn"])
def test_scaled_positions_survive_the_change_to_a_mistral(rope: str, tmp_path: Path) -> None:
    parameters = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    config = llama_config("llama2-13b", num_hidden_layers=1, rope_parameters=parameters)
    assert check_config(config, cut(config, BLOCKS[0], "uniform", 0.1), tmp_path) is MistralConfig
    frequencies = [
        kind(c).inv_freq
        for kind, c in (
            (LlamaRotaryEmbedding, config),
            (MistralRotaryEmbedding, AutoConfig.from_pretrained(tmp_path)),
        )
    ]
    assert torch.equal(*frequencies)


class Case(NamedTuple):
    """A model before its cut, and the search that cuts it."""

    config: LlamaConfig
    blocks: tuple[str, ...]
    structure: str
    removed: float


def exported(case: Case, folder: Path) -> LlamaForCausalLM:
    """The cut model, also written to `folder`."""
    torch.manual_seed(0)
    base = copy.deepcopy(case.config)
    model = LlamaForCausalLM(case.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.dim() == 1 else parameter.normal_(0, 0.08)
    keep = keep_of(case.config, case.blocks, case.structure, case.removed, 4)
    smaller = apply_plan(model, anatomy_of(case.config), Plan(keep=keep), None, torch.Generator())
    write.export(model, smaller, base, model.generation_config, tiny.tokenizer(), folder)
    return model


def check_logits(cases: dict[str, Case], folder: Path) -> set[str]:
    """Every cut model answers the same where apt_ds is not there; the classes that were loaded."""
    models = {name: exported(case, folder / name) for name, case in cases.items()}
    inputs = {"input_ids": tiny.ids(2)}
    greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    calls = {
        name: ("AutoModelForCausalLM", str(folder / name), bool(list((folder / name).glob("*.py"))), inputs, greedy)
        for name in cases
    }
    classes = set()
    for (name, attention), (class_name, answer, text) in loaded_elsewhere(calls, folder).items():
        expected = models[name](**inputs).logits
        assert torch.allclose(expected, answer["logits"], atol=1e-5), (name, attention)
        assert torch.equal(text, models[name].generate(inputs["input_ids"], **greedy)), (name, attention)
        assert class_name.startswith("Apt") == calls[name][2] and (
            cases[name].structure == "adaptive" or not calls[name][2]
        )
        classes.add(class_name)
    return classes


def test_models_of_the_published_shapes_answer_the_same_without_apt_ds(tmp_path: Path) -> None:
    """Heads and groups are the published ones, other sizes are divided alike."""
    cases = {name: Case(scaled_config(name), BLOCKS[3], "uniform", 0.3) for name in LLAMAS}
    for structure, blocks in itertools.product(STRUCTURES, (BLOCKS[0], BLOCKS[4])):
        name = f"llama3-8b {structure} {len(blocks)}"
        cases[name] = Case(scaled_config("llama3-8b"), blocks, structure, 0.1 if len(blocks) == 1 else 0.4)
    for number, biases in enumerate(BIASES):
        config = scaled_config("llama2-7b", **biases)
        cases |= {f"biases {number} {s}": Case(config, BLOCKS[3], s, 0.3) for s in STRUCTURES}
    assert check_logits(cases, tmp_path) == set(CLASSES.values())


def test_every_choice_for_an_encoder_or_t5_answers_the_same_without_apt_ds(tmp_path: Path) -> None:
    """What a stock class cannot hold has a class of its own in the folder, although its layers are alike."""
    models, calls = {}, {}
    for kind, blocks in itertools.product(tiny.SMALL, (BLOCKS[0], BLOCKS[4])):
        model, anatomy = dressed(kind)
        base = copy.deepcopy(model.config)
        rules = Rules(blocks, "uniform", 2, 2, configs.writable_sizes(base))
        scores = np.random.default_rng(2).random(anatomy.sizes.total()) * anatomy.params_per_block(anatomy.sizes)
        keep = search(
            scores, anatomy, rules, (0.8 if len(blocks) == 1 else 0.5) * anatomy.num_parameters(anatomy.sizes)
        )
        smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
        name = f"{kind} {len(blocks)}"
        write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / name, task=tiny.TASKS[kind])
        bundled = bool(list((tmp_path / name).glob("*.py")))
        greedy = {"max_new_tokens": 2, "do_sample": False}
        models[name] = model
        calls[name] = (AUTO_CLASSES[tiny.TASKS[kind]].__name__, str(tmp_path / name), bundled, inputs_of(model), greedy)
    for (name, attention), (_, answer, _) in loaded_elsewhere(calls, tmp_path).items():
        expected = answer_of(models[name], attention)
        for key, value in answer.items():
            assert torch.allclose(expected[key if key in expected else 0], value, atol=1e-5), (name, attention, key)


@pytest.mark.slow
def test_every_choice_for_every_scaled_llama_answers_the_same_without_apt_ds(tmp_path: Path) -> None:
    choices = [(BLOCKS[0], 0.1), (BLOCKS[1], 0.4), (BLOCKS[2], 0.5), (BLOCKS[3], 0.6), (BLOCKS[4], 0.2)]
    for name in LLAMAS:
        cases = {
            f"{structure} {number}": Case(scaled_config(name), blocks, structure, removed)
            for structure, (number, (blocks, removed)) in itertools.product(STRUCTURES, enumerate(choices))
        }
        check_logits(cases, tmp_path / name)


@pytest.mark.parametrize("biases", BIASES)
def test_with_biases_only_sizes_that_a_llama_may_have_are_chosen(biases: dict[str, bool]) -> None:
    for name, blocks, removed in itertools.product(("llama2-13b", "llama3-8b", "smollm2-360m"), BLOCKS[3:], REMOVED):
        config = scaled_config(name, **biases)
        plain, limited = (cut(c, blocks, "uniform", removed, 4).sizes for c in (scaled_config(name), config))
        queries = config.num_attention_heads // config.num_key_value_heads
        assert limited.hidden % (limited.counts[0] * queries) == 0
        if plain.hidden % (plain.counts[0] * queries) == 0:
            assert plain == limited
        # sizes by layer have a class of our own, which takes all of them
        by_layer = [cut(c, blocks, "adaptive", removed, 4).sizes for c in (scaled_config(name), config)]
        assert by_layer[0] == by_layer[1]


def test_where_no_size_can_be_written_the_search_says_so() -> None:
    config = scaled_config("smollm2-360m", attention_bias=True)
    # 15 heads divide no multiple of 7 below 120 but 105
    assert cut(config, ("hidden",), "uniform", 0.1, 7).sizes.hidden == 105
    with pytest.raises(UserError, match=r"no model .* can be written: .* divisible by the query heads. Change --align"):
        cut(config, ("hidden",), "uniform", 0.1, 11)
    assert cut(config, ("hidden",), "adaptive", 0.1, 11).sizes.hidden == 99


def test_a_search_that_starts_from_sizes_that_cannot_be_written_does_not_end_there() -> None:
    """Gradual pruning cuts to sizes between; the last search must still leave them."""
    config = scaled_config("llama2-7b", attention_bias=True)
    anatomy = anatomy_of(config)
    between = anatomy.with_sizes(type(anatomy.sizes)((29, 600, 29, 600), 256))
    rules = Rules(BLOCKS[3], "uniform", 4, 4, configs.writable_sizes(config))
    scores = np.random.default_rng(0).random(between.sizes.total())
    keep = search(scores, between, rules, between.num_parameters(between.sizes))
    assert 256 % kept_sizes(between.sizes, keep).counts[0] == 0


def test_a_llama_tokenizer_says_the_same_beside_a_mistral(tmp_path: Path) -> None:
    """Transformers chooses the class of a tokenizer by that of the configuration beside it."""
    words = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 127)), "▁", "▁a", "▁th", "he"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a")], add_bos_token=True)
    read = {}
    for name, config in (("llama", LlamaConfig()), ("mistral", as_mistral(LlamaConfig()))):
        tokenizer.save_pretrained(tmp_path / name)
        config.save_pretrained(tmp_path / name)
        read[name] = AutoTokenizer.from_pretrained(tmp_path / name)
    for text in ("a cat", " a  the\n{x} 12", "théâtre"):
        assert read["llama"](text)["input_ids"] == read["mistral"](text)["input_ids"] == tokenizer(text)["input_ids"]
        assert read["llama"].decode(tokenizer(text)["input_ids"]) == read["mistral"].decode(
            tokenizer(text)["input_ids"]
        )
