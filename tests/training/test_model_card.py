"""The card of a written model: its numbers are those of the summary, its code loads the model, it names nobody."""

from __future__ import annotations

import getpass
import json
import re
import shlex
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub import ModelCard

from apt_ds.config.resolve import resolve
from apt_ds.models.architectures.licence_terms import terms_of
from apt_ds.training import concluding
from apt_ds.training.model_card import prose, tables
from apt_ds.training.model_card.card import title_of
from apt_ds.training.model_card.command import command_of, shown
from apt_ds.training.model_card.loading import form_of
from tests.support.launcher import GRADUAL, Place, Run, inputs
from tests.support.paths import ROOT

LICENCE = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"
ZERO2 = str(ROOT / "ds_configs" / "zero2.json")


@pytest.fixture(scope="module")
def licensed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny model under a licence with demands, and its data."""
    place = inputs(tmp_path_factory.mktemp("licensed"))
    (place.folder / "model" / "LICENSE.txt").write_text(LICENCE)
    return place


def row(card: str, label: str) -> list[str]:
    """The cells of a table's row."""
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_the_card_of_a_run(structure: str, licensed: Place, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    # random scores give layers different sizes
    more = [*GRADUAL, "--structure", structure, "--score", "random", "--max_steps", "4", "--hub_token", "hf_secret"]
    ended = run(licensed.words(output, *more))
    assert ended.status == 0, ended.err
    summary = json.loads((output / "summary.json").read_text(encoding="utf8"))
    text = (output / "model" / "README.md").read_text(encoding="utf8")

    card = ModelCard.load(output / "model" / "README.md")
    assert card.data.license == "llama3.1" and card.data.pipeline_tag == "text-generation"
    assert card.data.library_name == "transformers" and "base_model" not in card.data.to_dict()
    assert (output / "model" / "LICENSE.txt").read_text() == LICENCE
    assert "Llama 3.1 Community License" in (output / "model" / "NOTICE").read_text()
    assert "# Llama out\n" in text and "**Built with Llama**" in text and 'begins with "Llama"' in text

    before, after = summary["before"], summary["after"]
    assert row(text, "parameters")[:2] == [f"{before['parameters']:,}", f"{after['parameters']:,}"]
    assert row(text, "held-out loss, nats")[:2] == [f"{one['held_out_loss']:.4f}" for one in (before, after)]
    speed = row(text, "generation at batch 1, tokens per second")
    assert speed[1] == f"{after['generated_tokens_per_second']:.1f}"
    neurons = summary["pruning"]["sizes"]["neurons"]
    by_layer = any(isinstance(summary["pruning"]["sizes"][kind], list) for kind in ("heads", "neurons"))
    assert by_layer == (structure == "adaptive")
    first = row(text, "0" if by_layer else "all")
    assert first[-1] == f"{neurons[0] if isinstance(neurons, list) else neurons} of 48"
    assert f"It keeps {100 * summary['pruning']['kept']:.2f} %" in text
    assert f"{summary['data']['train']} training examples" in text

    excluded = summary["pruning"]["excluded"]
    assert ("The kept sizes exclude these consumers" in text) == bool(excluded)
    assert all(f"\n- {line}\n" in text for line in excluded)
    assert bool(excluded) == (structure == "adaptive"), "vLLM has no sizes by layer"

    assert str(tmp_path) not in text and str(licensed.folder) not in text and "hf_secret" not in text
    assert getpass.getuser() not in text and str(Path.home()) not in text
    assert "{{" not in text and "{%" not in text and "None" not in text
    check_loading(text, output / "model")


def check_loading(text: str, folder: Path) -> None:
    """The card's own code loads the model. It trusts the folder's code only where there is some."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    own = "auto_map" in json.loads((folder / "config.json").read_text())
    assert ("trust_remote_code=True" in code) == own
    assert ("vllm serve" in text) == (not own)
    assert "python -m apt_ds.models.export.gguf FOLDER" in text and ("sizes by layer:" in text) == own
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)), names)
    with torch.no_grad():
        logits = names["model"](**names["tokenizer"]("the cat sees", return_tensors="pt")).logits
    assert logits.isfinite().all()


def test_a_failed_card_costs_no_model(place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("a template")

    monkeypatch.setattr(concluding, "write_card", fail)
    ended = run(place.words(tmp_path / "out", *GRADUAL, "--max_steps", "2", "--report", "false"))
    assert ended.status == 0
    assert len([line for line in ended.err.splitlines() if "the model card was not written: KeyError" in line]) == 1
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_the_command_repeats_the_run() -> None:
    given = ["--deepspeed", ZERO2, "--model_name_or_path", "/home/someone/base", "--data_path", "~/rows.jsonl"]
    given += ["--sparsity", "0.5", "--method", "apt", "--bf16", "--rank_growth", "even", "--hub_token", "hf_secret"]
    given += ["--eval_data_path", "some/set", "--output_dir", "/home/someone/runs/out"]
    run = resolve(given)
    words = shlex.split(command_of(run, 3))
    assert words[:4] == ["deepspeed", "--num_accelerators", "3", "launchers/train.py"]
    assert "someone" not in " ".join(words) and "hf_secret" not in words
    again = resolve([word.replace("zero2.json", ZERO2) for word in words[4:]])
    changed = {name for name, value in run.flags().items() if again.flags()[name] != value}
    assert changed == {"model_name_or_path", "data_path", "output_dir"}
    assert again.model.model_name_or_path == "base" and again.data.data_path == "rows.jsonl"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--repair", "none"],
        ["--pruning", "posttuning", "--repair", "ls"],
        ["--task", "sst2", "--repair", "ls"],
        ["--task", "sst2"],
        ["--score", "flap"],
        ["--recipe", "paper"],
        ["--preset", "quickstart"],
    ],
)
def test_the_command_states_a_repair_where_the_other_options_do_not_imply_it(words: list[str]) -> None:
    run = resolve(["--deepspeed", ZERO2, "--model_name_or_path", "m", "--data_path", "d", *words])
    command = shlex.split(command_of(run, 1))
    assert ("--repair" in command) == ("--repair" in words)
    again = resolve([word.replace("zero2.json", ZERO2) for word in command[4:]])
    assert again.flags() == run.flags()


@pytest.mark.parametrize("method", ["lora", "prune_lora", "full"])
def test_the_command_states_the_method(method: str) -> None:
    given = ["--deepspeed", ZERO2, "--model_name_or_path", "m", "--data_path", "d.json", "--method", method]
    run = resolve(given)
    again = resolve([word.replace("zero2.json", ZERO2) for word in shlex.split(command_of(run, 1))[4:]])
    assert again.flags() == run.flags()


def test_the_card_names_what_scored() -> None:
    sizes: dict[str, Any] = {"train": 10, "held_out": 2, "dropped": 0, "steps": 3}

    def text(*more: str) -> str:
        given = ["--deepspeed", ZERO2, "--model_name_or_path", "m", "--data_path", "d.json", *more]
        return " ".join(prose.data(resolve(given), cast(Any, {"data": sizes}), 1))

    assert "training examples: their gradients scored" in text()
    assert "examples of `texts.txt`: their gradients scored" in text("--calibration_path", "/home/someone/texts.txt")
    assert "scored" not in text("--score", "random")
    assert "The gradients of the first 50 % of the steps scored" in text("--pruning", "gradual")
    assert "Least squares" not in text("--repair", "none")
    repaired = text("--pruning", "gradual", "--repair", "ls", "--calibration_path", "t.txt", "--repair_examples", "9")
    # whole batches of 4
    assert "Least squares on 12 examples of `t.txt` changed the weights" in repaired
    later = text("--pruning", "gradual", "--pruning_start", "0.3")
    assert "The gradients of 50 % of the steps, after 30 % without pruning, scored" in later
    assert "wrote" not in later
    sizes["rewritten"] = {"rewritten": 1234}
    assert "The base model wrote 1,234 of the training answers itself." in text()


def test_folders_are_not_shown() -> None:
    assert shown("/a/b/c.json") == "c.json" and shown("~/x") == "x" and shown("org/name") == "org/name"
    assert shown("/a/b.json,data/c.json") == "b.json,data/c.json"


def test_sizes_by_layer() -> None:
    before = {"hidden": 8, "heads": 4, "neurons": 48}
    assert tables.layers(before, before | {"heads": 2})[1:] == [["all", "2 of 4", "48 of 48"]]
    rows = tables.layers(before, before | {"neurons": [16, 32]})
    assert rows == [["layer", "heads", "neurons"], ["0", "4 of 4", "16 of 48"], ["1", "4 of 4", "32 of 48"]]
    mixture = {"experts": 4, "heads": 4, "neurons": 8}
    assert tables.layers(mixture, mixture)[0] == ["layer", "heads", "experts", "neurons"]


def test_names_that_licences_demand() -> None:
    run = resolve(["--deepspeed", ZERO2, "--output_dir", "small", "--hub_model_id", "me/mine"])
    assert title_of(run, None) == "mine" and title_of(run, terms_of("llama3")) == "Llama 3 mine"
    assert title_of(run, terms_of("gemma")) == "mine"


def test_quantized_weights_cannot_become_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {}, "architectures": ["X"]}))
    form = form_of(tmp_path, "language model")
    assert form.vllm and not form.llama_cpp and not form.own_code
    assert not form_of(tmp_path, "classification").vllm
