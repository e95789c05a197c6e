"""Costs of models of every task, which come from their weights."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertModel, PreTrainedModel

from apt_ds.commands import evaluate
from apt_ds.config.errors import UserError
from apt_ds.eval import inference_cost, loading
from apt_ds.eval.inference_timing import ENCODER, ENCODER_DECODER, LANGUAGE, TimingPlan, TimingProtocol
from tests.models.test_export_tasks import exported, inputs_of
from tests.support import tiny
from tests.support.launcher import script_caller

PLAN = TimingPlan(prompt=9, new_tokens=3, rounds=2, batch=4)
Place = tuple[Path, dict[str, PreTrainedModel]]
LLAMA_PLAN = TimingPlan(prompt=8, new_tokens=3, rounds=2, max_batch=4, batch=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder of cut models, plain (`KIND-neurons`) and by layer (`KIND-adaptive`), and the models written there."""
    folder = tmp_path_factory.mktemp("tasks")
    kinds = ("bert-classes", "roberta-answers", "t5-gated")
    written = {f"{k}-{c}": exported(k, c, folder / f"{k}-{c}") for k in kinds for c in ("neurons", "adaptive")}
    for path in folder.glob("*/modeling_*.py"):
        path.write_text("raise RuntimeError('ran')", encoding="utf8")
    tiny.save_model(folder / "dense")  # a language model, as launch expects
    return folder, written


def test_models_of_every_task_load_without_running_their_code(place: Place) -> None:
    folder, written = place
    for name, model in written.items():
        task = tiny.TASKS[name.rpartition("-")[0]]
        assert loading.task_type_of(loading.read_config(str(folder / name))[1]) == task
        loaded = loading.load(str(folder / name), task_type=task).model
        outputs, expected = loaded(**inputs_of(model)), model(**inputs_of(model))
        assert type(loaded).__module__.startswith("apt_ds." if "adaptive" in name else "transformers.")
        assert torch.allclose(outputs[0], expected[0], atol=1e-5), name


@pytest.mark.parametrize(
    ("name", "protocol"), [("bert-classes", ENCODER), ("roberta-answers", ENCODER), ("t5-gated", ENCODER_DECODER)]
)
def test_costs_of_encoders_and_t5_come_from_their_weights(name: str, protocol: TimingProtocol, place: Place) -> None:
    folder, _ = place
    sources = {"model": str(folder / f"{name}-adaptive"), "baseline": str(folder / f"{name}-neurons")}
    assert inference_cost.protocol_of(sources) is protocol
    costs = inference_cost.measure(sources, plan=PLAN)
    for role, source in sources.items():
        model = loading.load(source, task_type=tiny.TASKS[name]).model
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        assert costs[role]["flops_per_token"] == 2 * linear
        assert costs[role]["parameters"] == sum(p.numel() for p in model.parameters())
        assert all(costs[role][key] > 0 for key, *_ in protocol.rows if key != "inference_bytes")
    assert costs["model"]["flops_per_token"] < costs["baseline"]["flops_per_token"]
    shown = inference_cost.render(costs, PLAN, protocol)
    assert "batches of 4 prompts of 9 tokens" in shown and ("3 new ones" in shown) == (protocol is ENCODER_DECODER)


def test_what_cannot_be_measured_is_refused(place: Place) -> None:
    folder, _ = place
    sources = {"model": str(folder / "bert-classes-neurons"), "baseline": str(folder / "dense")}
    with pytest.raises(UserError, match=r"different kinds cannot be compared: .* is for classification, .* language"):
        inference_cost.protocol_of(sources)
    assert inference_cost.protocol_of({"model": str(folder / "dense")}) is LANGUAGE
    # 64 positions, of which RoBERTa's first one pads
    for name, room in (("bert-classes-neurons", 64), ("roberta-answers-neurons", 63)):
        inference_cost.measure({"model": str(folder / name)}, plan=TimingPlan(prompt=room, rounds=1, batch=1))
        with pytest.raises(UserError, match=rf"--prompt_length {room + 1} is longer .* context of {room} tokens"):
            inference_cost.measure({"model": str(folder / name)}, plan=TimingPlan(prompt=room + 1, rounds=1, batch=1))
    with pytest.raises(UserError, match="is not for generation"):
        loading.load(str(folder / "bert-classes-neurons"), task_type=tiny.TASKS["t5"])


def test_the_script_measures_an_encoder(
    place: Place, tmp_path: Path, alone: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--efficiency", "--inference_batch_size", "2", "--prompt_length", "16", "--rounds", "1"]
    words += ["--model", str(place[0] / "bert-classes-adaptive"), "--json", str(tmp_path / "j")]
    ended = script_caller(evaluate.main, capfd, monkeypatch)(*words)
    assert ended.status == 0, ended.err
    assert re.search(r"forward pass, ms +[\d.]+", ended.out) and "batches of 2 prompts of 16 tokens" in ended.out
    assert json.loads((tmp_path / "j").read_text(encoding="utf8"))["plan"]["batch"] == 2


def test_a_bare_encoder_may_be_measured_but_not_judged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertModel(tiny.small("bert-classes").config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    task = tiny.TASKS["bert-classes"]
    assert loading.task_type_of(loading.read_config(str(tmp_path))[1]) == task
    with pytest.raises(UserError, match=r"2 weights are missing, such as classifier.bias"):
        loading.load(str(tmp_path), task_type=task)
    assert inference_cost.measure({"model": str(tmp_path)}, plan=PLAN)["model"]["forward_seconds"] > 0


def test_costs_come_from_the_weights_that_are_there(llamas: Path) -> None:
    costs = inference_cost.measure({"dense": str(llamas / "dense"), "pruned": str(llamas / "pruned")}, plan=LLAMA_PLAN)
    for name, figures in costs.items():
        model = loading.load(str(llamas / name)).model
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        assert figures["flops_per_token"] == 2 * linear
        assert figures["parameters"] == sum(p.numel() for p in model.parameters())
        ends = model.model.embed_tokens.weight.numel() + model.lm_head.weight.numel()
        assert figures["parameters_without_embeddings"] == figures["parameters"] - ends
        assert figures["checkpoint_bytes"] == (llamas / name / "model.safetensors").stat().st_size
        assert figures["batch"] == 4
        assert all(figures[key] > 0 for key, *_ in LANGUAGE.rows if not key.endswith("_bytes"))
        assert "inference_batch_bytes" in figures
    assert costs["pruned"]["flops_per_token"] < costs["dense"]["flops_per_token"]
    shown = inference_cost.render(costs, LLAMA_PLAN)
    assert "medians of 2 rounds" in shown and "ratio" in shown and "decode at batch 2, tokens/s" in shown
    assert "static cache at batch 2, tokens/s" in shown and shown.endswith("; static cache: no captured graph on a CPU")
    alone = inference_cost.measure({"dense": str(llamas / "dense")}, plan=replace(LLAMA_PLAN, batch=0))
    assert not any(key.startswith("inference_batch_") for key in alone["dense"])
    assert "batch 2" not in inference_cost.render(alone, replace(LLAMA_PLAN, batch=0))


def test_the_largest_batch_is_the_last_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_once(model: nn.Module, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
        if len(ids) > 8:
            raise torch.OutOfMemoryError
        return 0.0, 1.0

    monkeypatch.setattr(inference_cost, "run_once", run_once)
    assert inference_cost.largest_batch(tiny.model(), TimingPlan(max_batch=0)) == 8
    assert inference_cost.largest_batch(tiny.model(), TimingPlan(max_batch=6)) == 4
