"""What comes out is an ordinary model with the training model's logits."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from apt_ds.config.errors import UserError
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.models.export import write
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.pruning.test_masks import random_keep
from tests.support import tiny
from tests.support.elsewhere import ELSEWHERE

LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
assert "apt_ds" not in sys.modules
folders, ids = torch.load(sys.argv[1])
answers = {}
for name, (folder, bundled) in folders.items():
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=bundled)
    answers[name] = model(ids).logits, model.generate(ids[:1], max_new_tokens=5, do_sample=False)
assert "apt_ds" not in sys.modules
torch.save(answers, sys.argv[1] + ".out")
"""
CASES = [
    (kind, structure, tied)
    for kind in ("mha", "gqa")
    for structure, tied in (("uniform", True), ("uniform", False), ("adaptive", False))
]


def cut_model(kind: str, structure: str, tied: bool) -> tuple[LlamaForCausalLM, Anatomy, LlamaForCausalLM]:
    """A cut model with trained adapters, its anatomy, and the model before."""
    base = tiny.model(kind, tie_word_embeddings=tied)
    base.generation_config.eos_token_id = None
    model = copy.deepcopy(base)
    anatomy = anatomy_of(model.config)
    adapter.attach(model, anatomy, ("q", "v", "down"), 3, 0)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    keep = random_keep(anatomy, 1)
    if structure == "uniform":
        for site, span in block_slices(anatomy.sizes):
            count = {"head": 1, "neuron": 20, "hidden": 18}[anatomy.kind(site)]
            keep[span] = np.arange(span.stop - span.start) < count
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    return model, smaller, base


Answers = dict[tuple[str, str, bool], tuple[LlamaForCausalLM, Anatomy, Path, torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Each case to its cut model, blocks and folder, and to the logits and tokens of a process without this package."""
    place, models = tmp_path_factory.mktemp("export"), {}
    for kind, structure, tied in CASES:
        model, anatomy, base = cut_model(kind, structure, tied)
        folder = place / f"{kind}-{structure}-{tied}"
        write.export(model, anatomy, base.config, base.generation_config, tiny.tokenizer(), folder)
        models[kind, structure, tied] = model, anatomy, folder
    assert not list(place.glob("*.tmp"))
    calls = place / "calls.pt"
    torch.save(
        ({key: (str(folder), key[1] == "adaptive") for key, (_, _, folder) in models.items()}, tiny.ids()), calls
    )
    ELSEWHERE.run(LOGITS, calls)
    answers = torch.load(f"{calls}.out")
    return {key: (*value, *answers[key]) for key, value in models.items()}


@pytest.mark.parametrize(("kind", "structure", "tied"), CASES)
def test_written_model_has_the_same_logits_without_apt_ds(
    kind: str, structure: str, tied: bool, exported: Answers
) -> None:
    model, anatomy, folder, logits, generated = exported[kind, structure, tied]
    assert torch.allclose(logits, model(tiny.ids()).logits, atol=1e-5)
    expected = model.generate(tiny.ids()[:1], max_new_tokens=5, do_sample=False)
    assert torch.equal(generated, expected)
    names = set(load_file(folder / "model.safetensors"))
    assert not any("lora" in name for name in names) and ("lm_head.weight" in names) != tied
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    assert config["head_dim"] == 8 and config["hidden_size"] == anatomy.sizes.hidden
    assert (folder / "tokenizer.json").is_file() and (folder / "generation_config.json").is_file()


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "SHARD_BYTES", 20_000)
    model, anatomy, base = cut_model("gqa", "uniform", False)
    write.export(model, anatomy, base.config, None, tiny.tokenizer(), tmp_path / "model")
    files = sorted(p.name for p in (tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.allclose(loaded(tiny.ids()).logits, model(tiny.ids()).logits, atol=1e-5)


def test_a_failed_write_leaves_the_old_model_and_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, anatomy, base = cut_model("gqa", "uniform", False)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write the model to .*: No space left on device"):
        write.export(model, anatomy, base.config, None, tiny.tokenizer(), folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "old"]
