"""Judging a finished model: perplexity, costs, tasks of the harness, and what a user gets wrong."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apt_ds.config.errors import UserError
from apt_ds.eval import corpus_perplexity, inference_cost, loading
from apt_ds.models.export.modeling_apt_llama import AptLlamaConfig, AptLlamaForCausalLM
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT

TEXT = " ".join(tiny.WORDS[(5 * i) % len(tiny.WORDS)] for i in range(230))
PLAN = inference_cost.Plan(prompt=8, new_tokens=3, rounds=2, max_batch=4, batch=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `dense` model, a `pruned` one whose layers differ, and `text.txt`."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.save_model(folder / "dense")
    values = tiny.config().to_dict() | {"head_dim": 8, "layer_key_value_heads": [2, 1]}
    values |= {"layer_intermediate_sizes": [48, 20]}
    values.pop("model_type")
    config = AptLlamaConfig(**values)
    config.architectures = ["AptLlamaForCausalLM"]
    names = {"AutoConfig": "AptLlamaConfig", "AutoModelForCausalLM": "AptLlamaForCausalLM"}
    config.auto_map = {key: f"modeling_apt_llama.{name}" for key, name in names.items()}
    torch.manual_seed(0)
    AptLlamaForCausalLM(config).save_pretrained(folder / "pruned")
    tiny.tokenizer().save_pretrained(folder / "pruned")
    source = resources.files("apt_ds.models.export") / "modeling_apt_llama.py"
    shutil.copy(str(source), folder / "pruned")
    (folder / "text.txt").write_text(TEXT, encoding="utf8")
    return folder


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_is_that_of_its_definition(bos: bool, place: Path) -> None:
    judged = loading.load(str(place / "dense"))
    found = corpus_perplexity.judge(judged, corpus_perplexity.Corpus(str(place / "text.txt")).text(), 32, bos, 3)
    ids = judged.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    own = 31 if bos else 32
    losses = []
    for start in range(0, len(ids) - own + 1, own):
        block = torch.tensor([([1] if bos else []) + ids[start : start + own]])
        with torch.no_grad():
            logits = judged.model(block).logits
        losses += F.cross_entropy(logits[0, :-1], block[0, 1:], reduction="none").tolist()
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert (found["tokens"], found["blocks"]) == (len(losses), 230 // own)
    shown = corpus_perplexity.render(found)
    assert f"{len(losses)} tokens predicted" in shown and ("begins with BOS" in shown) == bos


def test_a_corpus_may_be_a_data_set(place: Path, tmp_path: Path) -> None:
    rows = [{"body": "the cat"}, {"body": "sees"}]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    source = corpus_perplexity.Corpus(str(tmp_path / "set"), column="body")
    assert source.text() == "the cat\n\nsees"
    with pytest.raises(UserError, match="--column 'text' is not in .*; it has body"):
        corpus_perplexity.Corpus(str(tmp_path / "set")).text()


def test_a_corpus_that_is_too_short_or_a_context_too_small(place: Path) -> None:
    judged = loading.load(str(place / "dense"))
    with pytest.raises(UserError, match="--block_length 256 is longer than the model's context of 128"):
        corpus_perplexity.judge(judged, TEXT, 256, False, 1)
    with pytest.raises(UserError, match="holds 2 tokens, fewer than one block of 32"):
        corpus_perplexity.token_blocks("the cat", judged.tokenizer, 32, False, "x")


def test_a_model_with_sizes_by_layer_loads_without_running_its_code(place: Path) -> None:
    (place / "pruned" / "modeling_apt_llama.py").write_text("raise RuntimeError('ran')", encoding="utf8")
    judged = loading.load(str(place / "pruned"))
    assert isinstance(judged.model, AptLlamaForCausalLM)
    assert judged.model.model.layers[1].mlp.up_proj.out_features == 20


def test_costs_come_from_the_weights_that_are_there(place: Path) -> None:
    found = inference_cost.measure({"dense": str(place / "dense"), "pruned": str(place / "pruned")}, plan=PLAN)
    for name, figures in found.items():
        model = loading.load(str(place / name)).model
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        assert figures["flops_per_token"] == 2 * linear
        assert figures["parameters"] == sum(p.numel() for p in model.parameters())
        ends = model.model.embed_tokens.weight.numel() + model.lm_head.weight.numel()
        assert figures["parameters_without_embeddings"] == figures["parameters"] - ends
        assert figures["checkpoint_bytes"] == (place / name / "model.safetensors").stat().st_size
        assert figures["batch"] == 4
        assert all(figures[key] > 0 for key, *_ in inference_cost.LANGUAGE.rows if not key.endswith("_bytes"))
        assert "inference_batch_bytes" in figures
    assert found["pruned"]["flops_per_token"] < found["dense"]["flops_per_token"]
    shown = inference_cost.render(found, PLAN)
    assert "medians of 2 rounds" in shown and "ratio" in shown and "decode at batch 2, tokens/s" in shown
    alone = inference_cost.measure({"dense": str(place / "dense")}, plan=replace(PLAN, batch=0))
    assert not any(key.startswith("inference_batch_") for key in alone["dense"])
    assert "batch 2" not in inference_cost.render(alone, replace(PLAN, batch=0))


def test_the_largest_batch_is_the_last_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_once(model: nn.Module, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
        if len(ids) > 8:
            raise torch.OutOfMemoryError
        return 0.0, 1.0

    monkeypatch.setattr(inference_cost, "run_once", run_once)
    assert inference_cost.largest_batch(tiny.model(), inference_cost.Plan(max_batch=0)) == 8
    assert inference_cost.largest_batch(tiny.model(), inference_cost.Plan(max_batch=6)) == 4


def records(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf8")


def arc(folder: Path) -> None:
    """A data set of the shape of ARC-Challenge where the harness's reader looks for it."""
    labels = ["A", "B", "C"]
    rows = [
        {"id": str(i), "question": " ".join(f"w{n}" for n in range(i + 1)), "answerKey": labels[i % 3]}
        | {"choices": {"text": ["the cat", "dog", "red house"], "label": labels}}
        for i in range(7)
    ]
    for split in ("train", "validation", "test"):
        records(folder / "ai2_arc" / "ARC-Challenge", split, rows)


@pytest.mark.dist
def test_the_harness_says_the_same_over_ranks_and_sharded_weights(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: install the extra [eval]")
    arc(tmp_path)
    shutil.copytree(place / "dense", tmp_path / "model")
    (alone,) = multiprocess.run(1, "eval_jobs.harness_figures", {"folder": str(tmp_path), "stages": [0]}).values()
    found = multiprocess.run(2, "eval_jobs.harness_figures", {"folder": str(tmp_path), "stages": [0, 3]})
    assert alone["acc_norm"] > 0
    for stage, figures in found.items():
        assert figures == alone, stage


def test_tasks_of_the_harness_run_on_local_data(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: install the extra [eval]")
    from apt_ds.eval import lm_eval_harness

    arc(tmp_path)
    judged = loading.load(str(place / "pruned"))
    found = lm_eval_harness.run(
        judged, lm_eval_harness.Request({"arc_challenge": (2, "acc_norm")}, str(tmp_path), limit=5)
    )
    assert found["arc_challenge"]["shots"] == 2 and 0 <= found["arc_challenge"]["acc_norm"] <= 1
    assert "acc_norm*" in lm_eval_harness.render(found)
    request = lm_eval_harness.Request({"hellaswag": (0, "")}, str(tmp_path))
    with pytest.raises(UserError, match=r"data set Rowan/hellaswag is missing .*--data_dir .* folder hellaswag"):
        lm_eval_harness.run(judged, request)
    with pytest.raises(UserError, match="'arc_challange' is no task .* did you mean arc_challenge"):
        lm_eval_harness.run(judged, lm_eval_harness.Request({"arc_challange": (None, "")}))


def launch(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / "launchers" / "evaluate.py"), "--model", str(place / "dense"), *words]
    return subprocess.run(
        call, env=multiprocess.environment(), capture_output=True, text=True, timeout=200, check=False
    )


def test_the_script_says_what_its_number_depends_on(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    ended = launch(place, "--perplexity", str(place / "text.txt"), "--block_length", "64", "--json", str(path))
    assert ended.returncode == 0, ended.stderr
    assert "3 blocks of 64 tokens, no BOS" in ended.stdout
    assert json.loads(path.read_text(encoding="utf8"))["tokens"] == 189


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--perplexity", "no/such/file.txt"], "is no text file, nor a data set that can be loaded"),
        (["--suite", "open-llm", "--efficiency"], "give one of --suite or --tasks, --perplexity, --efficiency"),
        (["--efficiency", "--rounds", "0"], "'0' is not allowed: give a whole number, at least 1"),
        (["--suite", "open-lm"], "--suite 'open-lm' is not allowed: give one of open-llm"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: list[str], line: str, place: Path) -> None:
    if "--suite" in words:
        pytest.importorskip("lm_eval")
    ended = launch(place, *words)
    told = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    assert (ended.returncode, len(told)) == (2, 1), ended.stderr
    assert line in told[0] and "Traceback" not in ended.stderr
