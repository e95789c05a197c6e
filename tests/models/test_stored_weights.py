"""The fingerprint of a folder's weights depends on their values, and not on how files hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apt_ds.config.errors import UserError
from apt_ds.models.stored_weights import fingerprint_of_source
from tests.support import tiny


def fingerprint(folder: Path) -> str:
    return fingerprint_of_source(str(folder), "the model")


def test_it_does_not_depend_on_the_files(tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    (tmp_path / "torch").mkdir()
    torch.save(model.state_dict(), tmp_path / "torch" / "pytorch_model.bin")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "shards") == fingerprint(tmp_path / "torch")


def test_any_bit_any_name_and_the_dtype_change_it(tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path / "one")
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.data[0, 0] = torch.nextafter(weight.data[0, 0], torch.tensor(torch.inf))
    model.save_pretrained(tmp_path / "value")
    model.bfloat16().save_pretrained(tmp_path / "dtype")
    torch.save({f"{k}x": v for k, v in tiny.model().state_dict().items()}, tmp_path / "pytorch_model.bin")
    places = (tmp_path / "one", tmp_path / "value", tmp_path / "dtype", tmp_path)
    assert len({fingerprint(folder) for folder in places}) == len(places)


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the model: its weights cannot be read: no file named model\.safetensors"):
        fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="the model: its weights cannot be read") as caught:
        fingerprint(tmp_path)
    assert "\n" not in str(caught.value)
