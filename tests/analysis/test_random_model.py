"""`launchers/random_model.py`: a folder of random weights that loads, trains and stays in the shape asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from apt_ds.analysis.bench.llamas import LLAMAS, llama_config
from apt_ds.analysis.bench.random_folder import check_folder, trained_tokenizer, write_random_model
from apt_ds.commands import random_model
from apt_ds.config.errors import UserError
from apt_ds.data.prompts import prompt_ids
from apt_ds.models import loading
from apt_ds.models.export import write
from tests.support import tiny


def test_a_folder_has_the_shape_dtype_and_layers_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "SHARD_BYTES", 100_000)
    size = write_random_model(tmp_path / "model", "tiny", torch.bfloat16, layers=3)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text(encoding="utf8"))
    assert len(files) > 2 and index["metadata"]["total_size"] == size
    assert all(size <= 100_000 + 512 * 64 * 2 for size in (file.stat().st_size for file in files))
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.bfloat16
    assert model.num_parameters() * 2 == size and model.config.num_hidden_layers == 3
    assert (model.model.norm.weight == 1).all() and 0.01 < model.lm_head.weight.std() < 0.03
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    base = loading.find_base(str(tmp_path / "model"))
    ids = prompt_ids("Name a colour.", base.tokenizer)
    assert max(ids) < 512 and "[assistant]" in base.tokenizer.decode(ids)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (base.tokenizer.eos_token_id, 0)


def test_the_same_arguments_give_the_same_weights(tmp_path: Path) -> None:
    for name in "ab":
        write_random_model(tmp_path / name, "tiny", torch.float32)
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"}) == 1


def test_one_layer_of_a_published_shape_has_its_sizes(tmp_path: Path) -> None:
    """SmolLM2 360M shares its embeddings: they are written once."""
    write_random_model(tmp_path / "model", "smollm2-360m", torch.bfloat16, layers=1)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes["model.embed_tokens.weight"] == (49152, 960) and "lm_head.weight" not in shapes
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (320, 960)


@pytest.mark.parametrize("name", LLAMAS)
def test_published_configurations_count_the_published_parameters(name: str) -> None:
    billions = {"llama2-7b": 6.738, "llama2-13b": 13.016, "llama2-70b": 68.977, "codellama-34b": 33.744}
    billions |= {"llama3-8b": 8.03, "llama3.2-1b": 1.236, "llama3.2-3b": 3.213, "tinyllama-1.1b": 1.1}
    billions |= {"smollm2-360m": 0.362, "smollm2-1.7b": 1.711, "yi-6b": 6.061, "yi-34b": 34.389, "deepseek-7b": 6.91}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama_config(name))
    model.tie_weights()
    assert model.num_parameters() / 1e9 == pytest.approx(billions[name], abs=6e-4)


def test_the_builtin_tokenizer_writes_any_text_and_reads_it_back() -> None:
    tokenizer = trained_tokenizer(32000)
    assert 1000 < len(tokenizer) <= 32000
    for text in ("Sort the list [3, 1, 2].", "naïve café, 東京 🙂\n\ttab"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    tiny.save_model(tmp_path / "other", vocab_size=600)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "other")
    tokenizer.add_tokens([f"more{number}" for number in range(400)])
    tokenizer.save_pretrained(tmp_path / "other")
    new = tmp_path / "new"
    for arguments, text in (
        ((full, "tiny", torch.float32), "is not an empty folder"),
        ((new, "llama9", torch.float32), r"--shape 'llama9': give one of llama2-7b"),
        ((new, "tiny", torch.float32, 2, str(tmp_path / "other")), "ids up to .* embeds only 512"),
        ((new, "tiny", torch.float32, 2, str(full)), "no tokenizer found"),
    ):
        with pytest.raises(UserError, match=text):
            write_random_model(*arguments)
    with pytest.raises(UserError, match="MB free and the weights take 1,000,000,000,000 MB; free space"):
        check_folder(new, 10**18)
    assert not new.exists() and not list(tmp_path.glob("*.tmp"))


def test_the_script_reads_its_options() -> None:
    parser = random_model.parser()
    own = parser.read(["out", "--shape", "llama3-8b", "--layers", "2"])
    assert (own.folder, own.shape, own.dtype, own.layers, own.tokenizer) == (
        "out",
        "llama3-8b",
        "bfloat16",
        2,
        "builtin",
    )
    with pytest.raises(UserError, match=r"--layers.*at least 1"):
        parser.read(["out", "--shape", "llama3-8b", "--layers", "0"])


@pytest.mark.parametrize("words", [["LONG", "--shape", "tiny"], ["f", "--shape", "LONG"]])
def test_a_path_that_is_too_long_is_one_line(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["random_model.py", *(word.replace("LONG", 300 * "x") for word in words)])
    with pytest.raises(UserError, match=r"^(FOLDER|--shape) 'xx.* is not a file or folder"):
        random_model.main()
