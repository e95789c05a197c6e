"""Model folders that are broken: one line that names the file or field, before weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apt_ds.config.errors import UserError
from apt_ds.data.tokenizer_checks import check_ids, check_lengths
from apt_ds.eval import loading
from apt_ds.models import loading as model_loading
from apt_ds.models.model_folder import check_weights
from tests.support import tiny

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 100\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change(folder: Path, **values: object) -> str:
    """The folder, its config.json with other values."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(folder)


CONFIGS: dict[str, tuple[dict[str, object], list[str]]] = {
    "heads that do not divide": (
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32},
        ["config.json is not valid", "hidden size (32)", "(3)"],
    ),
    "a number as text": ({"rms_norm_eps": "1e-5"}, ["config.json is not valid", "rms_norm_eps", "expected float"]),
    "no activation": ({"hidden_act": None}, ["config.json is not valid", "hidden_act"]),
    "a count as text": ({"num_hidden_layers": "2"}, ["num_hidden_layers", "expected int"]),
    "scaling of no object": ({"rope_scaling": 5}, ["rope_parameters"]),
    "an odd head": ({"head_dim": 7}, ["head_dim"]),
    "a dtype": ({"dtype": "float17"}, ["float17"]),
    "an activation": ({"hidden_act": "nope"}, ["hidden_act 'nope'"]),
    "an activation of another name": ({"hidden_activation": "nope"}, ["hidden_activation 'nope'"]),
    "no width of a head": ({"head_dim": 0}, ["head_dim", "is 0"]),
    "no layers": ({"num_hidden_layers": 0}, ["num_hidden_layers", "is 0"]),
    "no neurons": ({"intermediate_size": 0}, ["intermediate_size", "is 0"]),
    "no words": ({"vocab_size": 0}, ["vocab_size", "is 0"]),
    "no heads": ({"num_attention_heads": 0}, ["num_attention_heads", "is 0"]),
    "no groups": ({"num_key_value_heads": 0}, ["num_key_value_heads", "is 0"]),
    "a negative size": ({"hidden_size": -32}, ["hidden_size", "is -32"]),
    "groups that do not divide": ({"num_key_value_heads": 3}, ["4 num_attention_heads", "3 key/value heads"]),
    "fewer embeddings than words": ({"vocab_size": 100}, ["ids up to 225", "only 100"]),
    "padding": ({"pad_token_id": 226}, ["pad_token_id 226", "226 embeddings"]),
    "beginning": ({"bos_token_id": 5000}, ["bos_token_id 5000"]),
    "one of two ends": ({"eos_token_id": [2, 226]}, ["eos_token_id 226"]),
    "below -1": ({"pad_token_id": -2}, ["pad_token_id -2"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_makes_no_model_is_named_by_its_field(name: str, folder: Path) -> None:
    values, parts = CONFIGS[name]
    with pytest.raises(UserError) as error:
        model_loading.find_base(change(folder, **values))
    assert [part for part in parts if part not in str(error.value)] == [], error.value
    assert "\n" not in str(error.value)


def test_no_padding_token_is_no_mistake(folder: Path) -> None:
    assert model_loading.find_base(change(folder, pad_token_id=-1)).config.pad_token_id == -1
    assert model_loading.find_base(change(folder, pad_token_id=None)).config.pad_token_id is None


def test_the_decoder_starts_with_a_token_that_is_embedded() -> None:
    config = tiny.small("t5").config
    check_ids(config)
    config.decoder_start_token_id = config.vocab_size
    with pytest.raises(UserError, match="decoder_start_token_id 226"):
        check_ids(config)


@pytest.mark.parametrize("content", ["[]", "5", "null", '"text"', "", "{", "\x00"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_holds_no_object_is_one_line(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    for find in (model_loading.find_base, loading.load):
        with pytest.raises(UserError, match="no model and tokenizer there") as error:
            find(str(folder))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_named_with_what_fetches_the_file(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)
    for find in (model_loading.find_base, loading.load):
        with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
            find(str(folder))


def shards(folder: Path) -> list[Path]:
    """Have the folder's weights in two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    paths = [folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = names[::2], names[1::2]
    for path, part in zip(paths, parts, strict=True):
        save_file({name: weights[name] for name in part}, path, {"format": "pt"})
    index = {name: path.name for path, part in zip(paths, parts, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return paths


def lfs(path: Path) -> None:
    path.write_bytes(POINTER)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rename(path: Path) -> None:
    path.rename(path.with_name(f"old-{path.name}"))


HARMS = {
    lfs: "is a Git LFS pointer",
    cut: r"is truncated: \d+ bytes of \d+",
    cut_header: "is truncated or no safetensors file",
    empty: "is truncated or no safetensors file",
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("harm", [*HARMS, rename])
def test_weights_that_are_not_whole_are_named_by_their_file(harm: object, parts: int, folder: Path) -> None:
    path = shards(folder)[1] if parts == 2 else folder / "model.safetensors"
    check_weights(str(folder), "--model")
    harm(path)  # type: ignore[operator]
    absent = "names 2 files. 1 are absent, such as" if parts == 2 else "no file named .* which is not read"
    with pytest.raises(UserError, match=HARMS.get(harm, absent)) as error:  # type: ignore[call-overload]
        check_weights(str(folder), "--model")
    assert "\n" not in str(error.value) and (parts == 1 or path.name in str(error.value))
    with pytest.raises(UserError, match="--model "):
        loading.load(str(folder))


def test_an_index_of_nothing_is_named(folder: Path) -> None:
    shards(folder)
    for content in ("[]", "{}", '{"weight_map": {}}', "{"):
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
            check_weights(str(folder), "--model")


def test_a_pointer_that_is_not_read_does_not_matter(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    (folder / "tf_model.h5").write_bytes(POINTER)
    assert model_loading.find_base(str(folder)).task_type
    check_weights(str(folder), "--model")


@pytest.mark.parametrize("content", ["cut", b"", b"none", POINTER])
def test_a_broken_pickle_of_weights_is_one_line(content: str | bytes, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-1000] if isinstance(content, str) else content)
    with pytest.raises(UserError, match="--model ") as error:
        loading.load(str(folder))
    assert "\n" not in str(error.value)


def test_a_length_is_compared_with_a_language_models_positions() -> None:
    config = tiny.config()
    check_lengths(config, 128, 128)
    check_lengths(tiny.small("t5").config, 9999, 9999)
    with pytest.raises(UserError, match="has 129 tokens, more than the model's 128 positions"):
        check_lengths(config, 129, 0)
    with pytest.raises(UserError, match="--perplexity_length 129 is more than the model's 128 positions"):
        check_lengths(config, 5, 129)
