"""What a model folder says and runs: the dtype it names is that of its files, and its code runs only when asked for."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils
from transformers.models.auto import auto_factory, configuration_auto, tokenization_auto

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.eval import loading
from apt_ds.models import loading as model_loading
from apt_ds.models import pretrained
from apt_ds.models.adapter import AptLinear
from apt_ds.models.export import write
from tests.models.test_export import cut_model
from tests.support import multiprocess, tiny
from tests.support.launcher import Place, Run
from tests.support.paths import ROOT

SHORT = ["--max_steps", "1", "--calibration_steps", "1", "--save_steps", "0"]
CODE = """import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig): model_type = {kind!r}
class Own(LlamaForCausalLM): config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""


def change(path: Path, **values: Any) -> None:
    """Set fields of a JSON file; None takes one away."""
    content = json.loads(path.read_text(encoding="utf8")) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf8")


def dtypes(folder: Path) -> tuple[set[torch.dtype], Any, torch.dtype | None]:
    """Of the file, of config.json, and of the configuration as it is read."""
    file = {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
    stated = json.loads((folder / "config.json").read_text(encoding="utf8"))["dtype"]
    return file, stated, AutoConfig.from_pretrained(folder, trust_remote_code=False).dtype


# kind of model, dtype it is stored in, whether config.json says so, flags, dtype it is written in
WRITTEN = {
    "bf16 tuned as float16": ("llama", torch.float16, True, ["--bf16"], torch.bfloat16),
    "in float32 from a file in bfloat16": ("llama", torch.bfloat16, False, [], torch.bfloat16),
    "in float32 from float16": ("bert-classes", torch.float16, True, [], torch.float16),
    "T5 in float32 from bfloat16": ("t5", torch.bfloat16, True, [], torch.bfloat16),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_file_and_configuration_have_one_dtype(name: str, place: Place, tmp_path: Path, run: Run) -> None:
    kind, stored, stated, flags, expected = WRITTEN[name]
    if kind == "llama":
        words, folder = place.words(tmp_path / "out"), tmp_path / "model"
        tiny.model().to(stored).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        words += ["--model_name_or_path", str(folder)]
    else:
        words = place.words(tmp_path / "out", *tiny.save_task(tmp_path, kind))
        folder = tmp_path / "model"
        tiny.small(kind).to(stored).save_pretrained(folder)
    change(folder / "config.json", **({} if stated else {"dtype": None}))
    ended = run([*words, *SHORT, *flags, "--report", "false"])
    assert ended.status == 0, ended.err
    written = tmp_path / "out" / "model"
    assert dtypes(written) == ({expected}, str(expected).removeprefix("torch."), expected)
    figures = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf8"))
    counted = sum(tensor.nbytes for tensor in load_file(written / "model.safetensors").values())
    assert figures["after"]["checkpoint_bytes"] == counted


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_a_weight_is_rounded_once(structure: str, tmp_path: Path) -> None:
    model, anatomy, base = cut_model("gqa", structure, tied=False)
    folder = tmp_path / "model"
    write.export(model, anatomy, base.config, None, tiny.tokenizer(), folder, dtype=torch.bfloat16)
    assert dtypes(folder) == ({torch.bfloat16}, "bfloat16", torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            exact = module.merged() if isinstance(module, AptLinear) else module.weight
            assert torch.equal(tensors[f"{path}.weight"], exact.bfloat16()), path
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        exact, answer = model(tiny.ids()).logits, loaded(tiny.ids()).logits
    assert (answer - exact).norm() / exact.norm() < 2**-6


def test_the_disk_space_that_a_run_needs_is_the_size_of_what_it_writes(place: Place, tmp_path: Path) -> None:
    tiny.model().bfloat16().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    half, whole = (model_loading.find_base(str(folder)) for folder in (tmp_path, place.folder / "model"))
    plain = RunConfig(pruning="none")
    adapters = 12 * model_loading.adapter_parameters(half, plain)
    assert adapters == 12 * 2 * 8 * (32 + 32 + 32 + 16)
    sizes = [model_loading.bytes_written(base, plain) - adapters for base in (half, whole)]
    assert sizes[1] == 2 * sizes[0] > 0
    assert model_loading.bytes_written(whole, RunConfig(pruning="none", fp16=True)) - adapters == sizes[0]
    assert model_loading.written_dtype(half, RunConfig(fp16=True)) == torch.float16
    assert model_loading.written_dtype(half, plain) == half.dtype == torch.bfloat16


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_of_files_is_read_where_nothing_states_it(stored: torch.dtype, tmp_path: Path) -> None:
    model = tiny.model().to(stored)
    for name, more in (("one", {}), ("shards", {"max_shard_size": "20KB"})):
        model.save_pretrained(tmp_path / name, **more)
    (tmp_path / "pickled").mkdir()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    model.config.dtype = None
    for name in ("one", "shards", "pickled"):
        assert pretrained.stated_dtype(str(tmp_path / name), model.config) == stored, name
    assert pretrained.stated_dtype(str(tmp_path), model.config) == torch.float32
    model.config.dtype = torch.float64
    assert pretrained.stated_dtype(str(tmp_path / "one"), model.config) == torch.float32


class Coded:
    """A model folder with code of its own. ran: whether any of it was run."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.mark = folder / "coded", folder / "ran"
        tiny.save_model(self.folder)
        (self.folder / "own.py").write_text(CODE.format(mark=str(self.mark), kind=kind), encoding="utf8")
        names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
        change(self.folder / "config.json", model_type=kind, auto_map=names, custom_pipelines={"a": {"impl": "own.A"}})
        tokenizer = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
        change(self.folder / "tokenizer_config.json", **tokenizer)

    @property
    def ran(self) -> bool:
        return self.mark.exists()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions that transformers would put to a person. Code it may run is copied to a folder of the test."""
    questions: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda text="": questions.append(text) or "n")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return questions


def test_code_of_a_known_architecture_is_neither_run_nor_named_again(
    place: Place, tmp_path: Path, run: Run, asked: list[str]
) -> None:
    coded = Coded(tmp_path, "llama")
    ended = run(place.words(tmp_path / "out", *SHORT, "--model_name_or_path", str(coded.folder), "--report", "true"))
    assert ended.status == 0, ended.err
    assert not coded.ran and not asked and (tmp_path / "out" / "summary.json").is_file()
    for path in (tmp_path / "out" / "model").glob("*.json"):
        assert "own." not in path.read_text(encoding="utf8"), path
    loading.load(str(coded.folder))
    loading.load(str(tmp_path / "out" / "model"), trust=True)
    assert not coded.ran and not asked
    loading.load(str(coded.folder), trust=True)
    assert coded.ran


def test_code_of_another_architecture_is_refused_in_one_line(
    place: Place, tmp_path: Path, run: Run, asked: list[str]
) -> None:
    coded = Coded(tmp_path, "own_kind")
    words = place.words(tmp_path / "out", *SHORT, "--model_name_or_path", str(coded.folder))
    for more in ([], ["--trust_remote_code"]):
        ended = run([*words, *more])
        assert ended.status == 2 and "is not supported; supported: bert, deberta-v2" in ended.mistakes[0]
    with pytest.raises(UserError, match=r"its model needs code of its own: .* give --trust_remote_code to run it"):
        loading.load(str(coded.folder))
    assert not coded.ran and not asked and not (tmp_path / "out").exists()


def test_code_of_a_tokenizer_runs_only_when_asked_for(place: Place, tmp_path: Path, run: Run, asked: list[str]) -> None:
    coded = Coded(tmp_path, "llama")
    change(coded.folder / "config.json", auto_map=None, model_type="llama")
    change(coded.folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    words = place.words(tmp_path / "out", *SHORT, "--model_name_or_path", str(coded.folder), "--report", "false")
    ended = run(words)
    assert ended.status == 2 and "its tokenizer needs code of its own: " in ended.mistakes[0]
    with pytest.raises(UserError, match=r"--model .* its tokenizer needs code of its own: "):
        loading.load(str(coded.folder))
    assert not coded.ran and not asked
    ended = run([*words, "--trust_remote_code"])
    assert ended.status == 0 and coded.ran, ended.err
    assert type(loading.load(str(tmp_path / "out" / "model"), trust=True).tokenizer).__name__ == "OwnTokenizer"


def test_a_model_with_sizes_by_layer_is_loaded_without_its_code_and_not_cut_again(
    place: Place, tmp_path: Path, run: Run, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (auto_factory, configuration_auto, tokenization_auto):
        monkeypatch.setattr(module, "get_class_from_dynamic_module", lambda *a, **k: pytest.fail("code of a folder"))
    uneven = ["--structure", "adaptive", "--prune_blocks", "neurons", "--align", "1"]
    ended = run(place.words(tmp_path / "out", *SHORT, *uneven, "--report", "true"))
    assert ended.status == 0, ended.err
    model = tmp_path / "out" / "model"
    figures = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf8"))
    assert json.loads((model / "config.json").read_text(encoding="utf8"))["model_type"] == "apt_llama"
    assert len(figures["samples"]) == 1
    ended = run(place.words(tmp_path / "again", "--model_name_or_path", str(model), "--trust_remote_code"))
    assert ended.status == 2 and len(ended.mistakes) == 1 and not (tmp_path / "again").exists()
    assert "has sizes by layer" in ended.mistakes[0] and "--structure uniform" in ended.mistakes[0]
    assert not asked


@pytest.mark.parametrize("script", ["evaluate.py", "eval_mmlu.py"])
def test_evaluation_scripts_accept_trust_remote_code(script: str) -> None:
    call = [sys.executable, str(ROOT / "launchers" / script), "--help"]
    done = subprocess.run(call, env=multiprocess.environment(), capture_output=True, text=True, timeout=100, check=True)
    assert "--trust_remote_code" in done.stdout
