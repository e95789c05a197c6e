"""What large models need, on small ones: checkpoints in parts, a quantized base with offload."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from apt_ds.training.checkpoint import shards
from apt_ds.training.checkpoint.shards import ShardWriter
from tests.integration.test_quantized_runs import GRADUAL
from tests.support import multiprocess, tiny

FULL = ["--method", "full", "--max_steps", "4", "--optim", "adamw_8bit"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blocks(tmp_path_factory.mktemp("big"))


def test_no_file_is_larger_than_it_may_be(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "new")
    writer.limit = 1000
    tensors = {f"t{n}": torch.full((n + 1, 10), float(n)) for n in range(12)}
    for key, value in tensors.items():
        writer.add("trained", key, value)
        assert sum(t.nbytes for t in writer._waiting["trained"].values()) < 1000
    writer.add("other", "x", torch.arange(3))
    writer.close()
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == ["other.safetensors", "trained-2.safetensors", "trained-3.safetensors", "trained.safetensors"]
    assert max(sum(t.nbytes for t in load_file(tmp_path / "new" / file).values()) for file in files) < 1000 + 480
    content = shards.read(tmp_path / "new", [*files, "state.json"])
    assert set(content) == {"other", "trained"} and set(content["trained"]) == set(tensors)
    assert all(torch.equal(content["trained"][key], value) for key, value in tensors.items())


def test_a_failed_write_raises_when_the_writer_closes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = ShardWriter(tmp_path / "file" / "folder")
    writer.limit = 1
    for number in range(3):
        writer.add("trained", str(number), torch.ones(9))
    with pytest.raises(OSError, match="Not a directory"):
        writer.close()


@pytest.mark.dist
def test_a_checkpoint_of_all_weights_is_made_tensor_by_tensor(folder: Path) -> None:
    cases = [("full3", 3, False, FULL, [2])]
    results = multiprocess.run(
        2, "large_model_jobs.saved_in_parts", {"folder": str(folder), "cases": cases, "limit": 300_000}
    )
    straight = results["runs"]["full3"]["straight"]
    for when, run in results["runs"]["full3"].items():
        assert [key for key in straight if run[key] != straight[key]] == [], when
    weights = sum(t.nbytes for t in load_file(folder / "full3" / "model" / "model.safetensors").values())
    for most in results["most"]:
        # a state of generators is the largest object; the largest tensor is one of 128 x 512 in fp32
        assert most["held"] == 0 and most["object"] < 30_000
    first, second = (most["waiting"] for most in results["most"])
    assert first < 300_000 + 4 * 128 * 512 + 100_000 < weights and not second
    files = results["files"]["full3"]
    assert len([file for file in files if file.startswith("trained")]) > 5 and "blocks.safetensors" in files
    # a world of another size, in another stage
    source = {str(folder / "full3" / "checkpoint-2"): FULL}
    (run,) = multiprocess.run(
        1, "continued", {"folder": str(folder), "sources": source, "stages": [(2, False)]}
    ).values()
    losses, expected = ([row["loss"] for row in each["rows"]] for each in (run, straight))
    assert np.allclose(losses, expected, rtol=5e-3)


PLAIN = {bits: [*GRADUAL, "--base_bits", bits, "--export_bits", bits] for bits in ("4", "8")}


@pytest.mark.dist
@pytest.mark.parametrize("bits", ["4", "8"])
def test_a_quantized_base_trains_with_offload_and_checkpointing(bits: str, folder: Path) -> None:
    cases = [("plain", 3, False, PLAIN[bits]), ("both", 3, True, [*PLAIN[bits], "--gradient_checkpointing"])]
    runs = multiprocess.run(1, "large_model_jobs.exported", {"folder": str(folder), "cases": cases})
    run, plain = runs["both"], runs["plain"]
    assert run["alive"] == plain["alive"] and run["kept"] == plain["kept"] and run["ranks"] == plain["ranks"]
    assert run["rebuilds"] >= 2 and run["kept"][-1] <= 0.6 and run["ranks"][-1] > 8
    assert np.allclose(run["losses"], plain["losses"], rtol=1e-4)
    assert np.allclose(run["scores"], plain["scores"], rtol=1e-2)
    written = [load_file(folder / which / "model" / "model.safetensors") for which in ("both", "plain")]
    assert set(written[0]) == set(written[1])
    kind = {"attn_implementation": "eager", "trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(folder / "both" / "model", **kind).eval()
    with torch.no_grad():
        assert torch.isfinite(model(tiny.ids()).logits).all()


@pytest.mark.dist
@pytest.mark.parametrize("bits", ["4", "8"])
def test_a_quantized_base_trains_in_float16_where_the_device_does(bits: str, folder: Path) -> None:
    """DeepSpeed has none on most CPUs, and says so before weights are read."""
    case = ("fp16", 3, True, [*PLAIN[bits], "--fp16"])
    if not get_accelerator().is_fp16_supported():
        with pytest.raises(multiprocess.WorldFailedError) as failure:
            multiprocess.run(1, "large_model_jobs.exported", {"folder": str(folder), "cases": [case]})
        assert failure.value.statuses == [2]
        assert "error: --fp16: this device cannot train in float16" in failure.value.text
        return
    run = multiprocess.run(1, "large_model_jobs.exported", {"folder": str(folder), "cases": [case]})["fp16"]
    assert run["rebuilds"] >= 2 and np.isfinite(run["losses"]).all()
