"""What is special of DistilBERT, ELECTRA, ModernBERT and DeBERTa: their parts, heads, published shapes and refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    DebertaV2Config,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION
from apt_ds.eval import loading as eval_loading
from apt_ds.models import adapter, loading, task_heads
from apt_ds.models.architectures import REGISTRY, anatomy_of, architecture_of
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.blocks import Anatomy, block_slices, kept_sizes
from apt_ds.models.export import configs, write
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.limits import Rules, default_align
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.pruning.test_masks import random_keep
from tests.support import tiny, tiny_encoders
from tests.support.paths import ROOT

KINDS = tuple(tiny_encoders.SMALL)
WORDS = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "unread"]


def loaded(folder: Path, task: str = "sst2", *flags: str) -> PreTrainedModel:
    """The model that a run of a task makes of a folder."""
    tiny.framing_tokenizer().save_pretrained(folder)
    base = loading.find_base(str(folder), task, ("negative", "positive"))
    return loading.load_model(base, resolve([*WORDS, "--model_name_or_path", str(folder), "--task", task, *flags]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_encoder_gets_a_head_that_is_trained(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tiny.small(kind)
    source.base_model.save_pretrained(tmp_path)
    task = "sst2" if tiny.TASKS[kind] == CLASSIFICATION else "squad"
    model = loaded(tmp_path, task)
    anatomy, spec = anatomy_of(model.config, tiny.TASKS[kind]), architecture_of(model.config)
    heads = spec.task_heads[tiny.TASKS[kind]]
    assert f"{', '.join(heads)}: not in the checkpoint, initialized at random" in capfd.readouterr().err
    drawn = {f"{head}.{name}" for head in heads for name, _ in model.get_submodule(head).named_parameters()}
    expected = source.state_dict()
    for name, value in model.state_dict().items():
        assert (name in drawn) != torch.equal(value, expected[name]), name
    task_heads.attach(model.requires_grad_(False), anatomy)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name in drawn if not name.startswith("head.norm")}


def test_a_masked_language_model_lends_its_head_to_a_classifier(tmp_path: Path) -> None:
    source = ModernBertForMaskedLM(tiny.small("modernbert-answers").config)
    source.head.norm.weight.data.uniform_(0.5, 1.5)
    source.save_pretrained(tmp_path)
    model = loaded(tmp_path)
    for name, value in source.head.state_dict().items():
        assert torch.equal(model.head.state_dict()[name], value), name


def test_a_discriminator_is_a_base_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = ElectraForPreTraining(tiny.small("electra-classes").config)
    source.save_pretrained(tmp_path)
    model = loaded(tmp_path)
    assert "classifier.dense, classifier.out_proj: not in the checkpoint" in capfd.readouterr().err
    for name, value in source.electra.state_dict().items():
        assert torch.equal(model.electra.state_dict()[name], value), name


def test_targets_of_a_fused_layer_share_one_adapter() -> None:
    model = tiny.small("modernbert-classes")
    anatomy = anatomy_of(model.config, CLASSIFICATION)
    adapter.check_targets(anatomy, ("q", "k", "v", "o", "gate", "up", "down"))
    adapter.attach(model, anatomy, ("q", "v", "gate", "up"), rank=3, seed=1)
    paths = [f"model.layers.{i}.{name}" for i in range(2) for name in ("attn.Wqkv", "mlp.Wi")]
    assert [path for path, _ in adapter.adapters(model)] == paths
    with pytest.raises(UserError, match="--adapter_targets q,gate: the model has no gate; give some of q, k, v, o, up"):
        adapter.check_targets(anatomy_of(tiny.small("electra-classes").config, CLASSIFICATION), ("q", "gate"))


def test_a_fused_weight_keeps_the_rows_of_kept_blocks_in_every_part() -> None:
    model = tiny.small("modernbert-answers")
    anatomy = anatomy_of(model.config, ANSWERS)
    attention, mlp = model.model.layers[1].attn, model.model.layers[1].mlp
    before = {name: p.clone() for name, p in (*attention.named_parameters(), *mlp.named_parameters())}
    keep, spans = np.ones(anatomy.sizes.total(), dtype=bool), dict(block_slices(anatomy.sizes))
    keep[spans[2]] = [True, False, False, True]
    keep[spans[3].start : spans[3].start + 40] = False
    apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    rows = [part * 32 + head * 8 + i for part in range(3) for head in (0, 3) for i in range(8)]
    assert torch.equal(attention.Wqkv.weight, before["Wqkv.weight"][rows])
    assert torch.equal(attention.Wqkv.bias, before["Wqkv.bias"][rows])
    assert torch.equal(mlp.Wi.weight, before["Wi.weight"][[*range(40, 48), *range(88, 96)]])
    assert attention.Wqkv.out_features == 48 and mlp.Wi.out_features == 16


def test_a_window_hides_distant_tokens_and_survives_the_export(tmp_path: Path) -> None:
    model = tiny.small("modernbert-classes")
    base = copy.deepcopy(model.config)
    anatomy = anatomy_of(base, CLASSIFICATION)
    smaller = apply_plan(model, anatomy, Plan(keep=random_keep(anatomy, 2)), None, torch.Generator())
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path, task=CLASSIFICATION)
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.layer_types == ["full_attention", "sliding_attention"] and read.local_attention == 4
    assert read.rope_parameters["full_attention"]["rope_theta"] == 1000.0
    assert read.rope_parameters["sliding_attention"]["rope_theta"] == 10000.0
    expected = tiny.answer(model)
    model.config.local_attention = 64
    assert not torch.allclose(tiny.answer(model), expected, atol=1e-3)


POSITIONS: dict[str, dict[str, Any]] = {
    "content to position": {"pos_att_type": ["c2p"], "share_att_key": False},
    "position to content, shared, not normalized": {"pos_att_type": ["p2c"], "share_att_key": True},
    "neither": {"pos_att_type": None, "relative_attention": False, "position_biased_input": True},
    "all distances": {"pos_att_type": ["c2p", "p2c"], "position_buckets": -1, "max_relative_positions": 8},
    "sigmoid pooler": {"pos_att_type": ["c2p"], "norm_rel_ebd": "layer_norm", "pooler_hidden_act": "sigmoid"},
}


@pytest.mark.parametrize("case", POSITIONS)
def test_masked_equals_cut_for_every_kind_of_position(case: str) -> None:
    model_class, config_class, task = tiny_encoders.SMALL["deberta-classes"]
    torch.manual_seed(0)
    model = model_class(config_class(vocab_size=300, pad_token_id=0, **tiny_encoders.DEBERTA | POSITIONS[case])).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0.1, 0.3)
    anatomy = anatomy_of(model.config, task)
    assert {slot.path for slot in anatomy.slots} == {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    architecture_of(model.config).prepare(model, anatomy)
    keep = random_keep(anatomy, 1)
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    masks = Masks(anatomy)
    masks.install(masked)
    masks.set(keep.astype(float))
    apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    assert torch.allclose(tiny.answer(masked), tiny.answer(cut), atol=1e-5)
    assert not torch.allclose(tiny.answer(masked), tiny.answer(model), atol=1e-2)


@pytest.mark.parametrize("kind", ["electra-classes", "deberta-answers"])
def test_projected_embeddings_may_be_as_wide_as_the_stream_that_is_left(kind: str, tmp_path: Path) -> None:
    model = tiny.small(kind)
    base = copy.deepcopy(model.config)
    anatomy = anatomy_of(base, tiny.TASKS[kind])
    architecture_of(base).prepare(model, anatomy)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        count = {"head": 2, "neuron": 20, "hidden": base.embedding_size}[anatomy.kind(site)]
        keep[span] = np.arange(span.stop - span.start) < count
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model", task=tiny.TASKS[kind])
    read = AUTO_CLASSES[tiny.TASKS[kind]].from_pretrained(tmp_path / "model", attn_implementation="eager")
    assert type(read).__name__.startswith("Apt") and read.config.hidden_size == read.config.embedding_size
    assert torch.allclose(tiny.answer(read), tiny.answer(model), atol=1e-5)


# hidden size, heads, neurons, and further fields of the published models
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert-base": ("distilbert", {"dim": 768, "n_heads": 12, "hidden_dim": 3072, "n_layers": 2}),
    "electra-small": ("electra", {"sizes": (256, 4, 1024), "embedding_size": 128}),
    "electra-base": ("electra", {"sizes": (768, 12, 3072), "embedding_size": 768}),
    "electra-large": ("electra", {"sizes": (1024, 16, 4096), "embedding_size": 1024}),
    "ModernBERT-base": ("modernbert", {"sizes": (768, 12, 1152)}),
    "ModernBERT-large": ("modernbert", {"sizes": (1024, 16, 2624)}),
    "deberta-v3-xsmall": ("deberta-v2", {"sizes": (384, 6, 1536)}),
    "deberta-v3-small": ("deberta-v2", {"sizes": (768, 12, 3072)}),
    "deberta-v3-base": ("deberta-v2", {"sizes": (768, 12, 3072)}),
    "deberta-v3-large": ("deberta-v2", {"sizes": (1024, 16, 4096)}),
}


def published(name: str) -> PretrainedConfig:
    """The configuration of a published model, with two layers."""
    model_type, values = SHAPES[name]
    values = dict(values)
    if "sizes" in values:
        names = ("hidden_size", "num_attention_heads", "intermediate_size")
        values |= dict(zip(names, values.pop("sizes"), strict=True)) | {"num_hidden_layers": 2}
    if model_type == "deberta-v2":
        values |= tiny_encoders.VERSION_3 | {"relative_attention": True, "position_buckets": 256}
        values["pooler_hidden_size"] = values["hidden_size"]
    if model_type == "modernbert":
        # as written by older versions of transformers
        values |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    return AutoConfig.for_model(model_type, **values)


def check_written(base: PretrainedConfig, smaller: Anatomy, task: str, folder: Path) -> bool:
    """Write a configuration and make its model: every weight has the size of its blocks. True for sizes by layer."""
    spec = architecture_of(base)
    stock = getattr(__import__("transformers"), spec.stock_classes[task])
    with torch.device("meta"):
        form = configs.written(stock(copy.deepcopy(base)), base, smaller, task)
        form.config.save_pretrained(folder)
        read = AutoConfig.from_pretrained(folder)
        model = AUTO_CLASSES[task].from_config(read, attn_implementation=spec.attention(base, "sdpa"))
    assert type(model).__name__ == read.architectures[0]
    counts = {site: span.stop - span.start for site, span in block_slices(smaller.sizes)}
    for slot in smaller.slots:
        shape = model.get_submodule(slot.path).weight.shape
        for axis, size in zip((slot.rows, slot.columns), shape, strict=False):
            assert axis is None or counts[axis.site] * axis.unit == size, slot.path
    assert {slot.path for slot in smaller.slots} == {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    return bool(form.modules)


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_search_leaves_of_a_published_shape_can_be_written(name: str, tmp_path: Path) -> None:
    config, forms = published(name), set()
    for number, removed in enumerate((0.1, 0.2, 0.3, 0.4, 0.5, 0.6)):
        task = (CLASSIFICATION, ANSWERS)[number % 2]
        anatomy = anatomy_of(config, task)
        align = default_align(anatomy)
        scores = np.random.default_rng(1).random(anatomy.sizes.total()) * anatomy.params_per_block(anatomy.sizes)
        for structure in ("uniform", "adaptive"):
            blocks = ("heads", "neurons", "hidden") if number > 1 else ("neurons",)
            rules = Rules(blocks, structure, align, align, configs.writable_sizes(config))
            keep = search(scores, anatomy, rules, (1 - removed) * anatomy.num_parameters(anatomy.sizes))
            smaller = anatomy.with_sizes(kept_sizes(anatomy.sizes, keep))
            forms.add((structure, check_written(config, smaller, task, tmp_path / f"{number}-{structure}")))
    assert ("uniform", False) in forms and ("adaptive", True) in forms


def test_a_convolution_is_refused(tmp_path: Path) -> None:
    config = tiny.small("deberta-classes").config
    config.conv_kernel_size = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a convolution \(conv_kernel_size 3 in config.json\) is not supported; give"):
        loading.find_base(str(tmp_path), "sst2", ("no", "yes"))
    config.conv_kernel_size, config.pooler_hidden_size = 0, 16
    with pytest.raises(UserError, match="pooler_hidden_size 16 and hidden_size 32 is not supported"):
        anatomy_of(config, CLASSIFICATION)


def test_a_family_with_an_attention_of_its_own_takes_no_kernel() -> None:
    spec, config = REGISTRY["deberta-v2"], DebertaV2Config()
    assert spec.attention(config, "sdpa") == spec.attention(config, "eager") == "eager"
    with pytest.raises(UserError, match="--attn_implementation flash_attention_2: architecture 'deberta-v2' has"):
        spec.attention(config, "flash_attention_2")
    for kernel in ("sdpa", "flash_attention_2"):
        assert REGISTRY["modernbert"].attention(ModernBertConfig(), kernel) == kernel


def test_a_multiple_choice_head_is_refused(tmp_path: Path) -> None:
    ElectraForMultipleChoice(tiny.small("electra-classes").config).save_pretrained(tmp_path)
    tiny.framing_tokenizer().save_pretrained(tmp_path)
    reason = "has a multiple-choice head (ElectraForMultipleChoice), which no task uses; give the encoder"
    with pytest.raises(UserError) as training:
        loading.find_base(str(tmp_path), "sst2", ("no", "yes"))
    with pytest.raises(UserError) as evaluation:
        eval_loading.read_config(str(tmp_path))
    assert f"--model_name_or_path '{tmp_path}' {reason}" in str(training.value)
    assert f"--model '{tmp_path}' {reason}" in str(evaluation.value)
