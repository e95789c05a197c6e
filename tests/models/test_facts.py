"""`apt_ds.json`: its indices say which blocks of the base model a written model has, across several cuts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, kept_sizes
from apt_ds.models.export import write
from apt_ds.models.export.facts import (
    FILE,
    VERSION,
    BaseFacts,
    Facts,
    keep_of,
    kept_sublayers,
    public_name,
    read_facts,
    versions,
)
from apt_ds.pruning.block_history import BlockHistory
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.models.test_architectures import dressed
from tests.pruning.test_masks import random_keep
from tests.support import tiny, tiny_experts


def cut(model: PreTrainedModel, whole: Anatomy, cuts: int) -> tuple[Anatomy, BlockHistory]:
    """Cut a model several times, and record it as a run does."""
    anatomy, history = whole, BlockHistory(whole.sizes.total())
    for number in range(cuts):
        keep = random_keep(anatomy, number)
        anatomy = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
        history.follow(keep, None)
    return anatomy, history


def facts_of(model: PreTrainedModel, whole: Anatomy, history: BlockHistory) -> Facts:
    sublayers, hidden = kept_sublayers(whole, history.kept_ids, history.scale)
    base = BaseFacts(
        name="tiny",
        model_type=model.config.model_type,
        task_type=LANGUAGE_MODEL,
        fingerprint="f",
        parameters=whole.num_parameters(whole.sizes),
        hidden=whole.sizes.hidden,
    )
    return Facts(
        version=VERSION,
        versions=versions(),
        export_format="auto",
        bits=16,
        base=base,
        sublayers=sublayers,
        hidden=hidden,
        ranks={"model.layers.0.self_attn.q_proj": 4},
        fingerprints={"train": "t"},
    )


@pytest.mark.parametrize("kind", ["mha", "bert-classes", "t5-gated", "modernbert-answers"])
def test_the_base_model_cut_by_the_indices_has_the_written_weights(kind: str, tmp_path: Path) -> None:
    model, whole = dressed(kind) if kind != "mha" else (tiny.model(kind), anatomy_of(tiny.config(kind)))
    base, again = copy.deepcopy(model.config), copy.deepcopy(model)
    smaller, history = cut(model, whole, 2)
    folder, task = tmp_path / "model", tiny.TASKS[kind]
    write.export(model, smaller, base, None, tiny.tokenizer(), folder, task=task, facts=facts_of(model, whole, history))
    facts = read_facts(folder)
    assert facts["export_format"] == "adaptive"
    keep = keep_of(facts, whole)
    assert kept_sizes(whole.sizes, keep) == smaller.sizes
    cut_anatomy = apply_plan(again, whole, Plan(keep=keep), None, torch.Generator())
    write.export(again, cut_anatomy, base, None, tiny.tokenizer(), tmp_path / "again", task=task)
    written, expected = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_experts_and_factors_are_recorded(tmp_path: Path) -> None:
    model, whole = tiny_experts.dressed("mixtral")
    keep = tiny_experts.keep_of(whole, "uniform")
    history = BlockHistory(whole.sizes.total())
    history.follow(keep, np.where(np.arange(len(keep)) == np.flatnonzero(keep)[0], 1.5, 1.0))
    facts = facts_of(model, whole, history)
    assert np.array_equal(keep_of(facts, whole), keep)
    assert [entry["kind"] for entry in facts["sublayers"][:3]] == ["head", "expert", "neuron"]
    assert facts["sublayers"][0]["scale"] == [1.5] and "scale" not in facts["sublayers"][1]
    assert {entry["layer"] for entry in facts["sublayers"]} == {"model.layers.0", "model.layers.1"}


def test_a_base_model_of_other_sizes_is_refused() -> None:
    whole = anatomy_of(tiny.config())
    facts = facts_of(tiny.model(), whole, BlockHistory(whole.sizes.total()))
    assert keep_of(facts, whole).all()
    with pytest.raises(UserError, match="is of a base model with other sizes; give 'tiny'"):
        keep_of(facts, anatomy_of(tiny.config(intermediate_size=44)))


SPOILED: dict[str, tuple[Any, str]] = {
    "absent": (None, "cannot be read: No such file or directory; give a folder that a run has written"),
    "broken": ("{", "is not valid JSON"),
    "foreign": ({"a": 1}, "has no field 'version': apt_ds did not write it"),
    "later": ({"version": VERSION + 1}, f"has version {VERSION + 1}, this one reads up to {VERSION}: install a later"),
    "incomplete": ({"version": VERSION, "export_format": "stock"}, "has no valid field 'base'"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_mistakes_in_the_file_are_one_line(case: str, tmp_path: Path) -> None:
    content, line = SPOILED[case]
    if content is not None:
        (tmp_path / FILE).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf8")
    with pytest.raises(UserError, match=line) as error:
        read_facts(tmp_path)
    assert "\n" not in str(error.value)


def test_names_of_a_base_model_say_nothing_of_this_machine(tmp_path: Path) -> None:
    names = {str(tmp_path / "llama"): "llama", "../models/llama": "llama", "meta-llama/Llama-3.2-1B": None}
    names |= {"builtin:smollm2": None, "gpt2": None, 300 * "x": None}
    for name, expected in names.items():
        assert public_name(name) == (expected or name)


def test_a_model_whose_layers_all_lost_their_heads_is_written(tmp_path: Path) -> None:
    model, whole = tiny.model(), anatomy_of(tiny.config())
    base, keep = copy.deepcopy(model.config), np.ones(whole.sizes.total(), dtype=bool)
    keep[:2] = keep[50:52] = False
    smaller = apply_plan(model, whole, Plan(keep=keep), None, torch.Generator())
    assert smaller.sizes.counts == (0, 48, 0, 48)
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.allclose(read(tiny.ids()).logits, model(tiny.ids()).logits, atol=1e-6)
    with pytest.raises(UserError, match="a 'llama' cannot be padded here: no layer has any head left"):
        write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "padded", form="padded")
