"""Whole runs with a base of 4 or 8 bits and with Adam's moments in 8, in every ZeRO stage that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.runtime.zero import adam8bit
from tests.support import multiprocess, tiny

# cuts and growth after steps 2 and 4
GRADUAL = [
    *("--pruning", "gradual", "--structure", "adaptive", "--max_steps", "8", "--sparsity", "0.4"),
    *("--mask_step", "0.5", "--prune_every", "2", "--learning_rate", "1e-3"),
]
WIDE = ["--adapter_targets", "q,k,v,o,gate,up,down"]
MODES = {"4": [*GRADUAL, "--base_bits", "4"], "8": [*GRADUAL, "--base_bits", "8"]}
BOTH = [*GRADUAL, *WIDE, "--base_bits", "4", "--bf16", "--optim", "paged_adamw_8bit"]

dist = pytest.mark.dist


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blocks(tmp_path_factory.mktemp("few_bits"))


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, dict[str, Any]]:
    return multiprocess.run(2, "runs", {"folder": str(folder), "stages": [(2, False), (3, False)], "modes": MODES})


@dist
@pytest.mark.parametrize("bits", [4, 8])
def test_stages_agree_on_a_quantized_base(bits: int, runs: dict[str, dict[str, Any]]) -> None:
    second, third = runs[f"2 {bits}"], runs[f"3 {bits}"]
    assert second["alive"] == third["alive"] and second["kept"] == third["kept"]
    assert np.allclose(second["losses"], third["losses"], rtol=1e-4)
    assert np.allclose(second["scores"], third["scores"], rtol=1e-2)
    assert second["rebuilds"] >= 2 and second["kept"][-1] <= 0.6 and second["ranks"][-1] > 8


@dist
def test_moments_of_8_bits_train_as_those_of_32(folder: Path) -> None:
    modes = {"8": [*GRADUAL, *WIDE, "--optim", "adamw_8bit"], "32": [*GRADUAL, *WIDE]}
    runs = multiprocess.run(1, "runs", {"folder": str(folder), "stages": [(3, False)], "modes": modes})
    eight, full = runs["3 8"], runs["3 32"]
    assert eight["alive"] == full["alive"]
    assert np.allclose(eight["losses"], full["losses"], rtol=2e-3) and eight["losses"] != full["losses"]
    assert eight["losses"][-1] < 0.95 * eight["losses"][0]


@dist
def test_resuming_across_cuts_is_bit_identical(folder: Path) -> None:
    runs = multiprocess.run(2, "resumed", {"folder": str(folder), "cases": [("both", 3, False, BOTH, [5])]})["both"]
    straight = runs["straight"]
    assert straight["rebuilds"] >= 2 and len({row["kept"] for row in straight["rows"]}) > 2
    for when, run in runs.items():
        assert [key for key in straight if run[key] != straight[key]] == [], when
    # other ranks share other blocks: moments are quantized again
    source = {str(folder / "both" / "checkpoint-5"): BOTH}
    again = multiprocess.run(1, "continued", {"folder": str(folder), "sources": source, "stages": [(2, False)]})
    (run,) = again.values()
    assert run["alive"] == straight["alive"]
    losses, expected = ([row["loss"] for row in each["rows"]] for each in (run, straight))
    assert np.allclose(losses, expected, rtol=5e-3)


@dist
@pytest.mark.parametrize("bits", [4, 8])
def test_a_rank_holds_its_share_of_the_codes(bits: int, folder: Path) -> None:
    flags = ["--pruning", "none", "--max_steps", "1", "--base_bits", str(bits)]
    sizes = multiprocess.run(2, "sharding_jobs.packed_shards", {"folder": str(folder), "flags": flags})
    assert len(sizes["whole"]) == 14
    for when in ("rest", "waiting"):
        assert [2 * size for size in sizes[when]] == sizes["whole"], when


@dist
def test_moments_of_8_bits_follow_their_index(folder: Path) -> None:
    flags = [*GRADUAL, *WIDE, "--optim", "adamw_8bit", "--score", "random"]
    arguments = {"folder": str(folder), "stages": [(stage, False) for stage in range(4)], "flags": flags}
    for stage, run in multiprocess.run(2, "sharding_jobs.eight_bit_moments", arguments).items():
        # where nothing moves the very blocks are put back
        assert run["same"] and run["blocks"] > 0, stage
        assert run["errors"].pop("master") == 0.0 and run["new"] == 0.0, stage
        # at stage 0 every tensor has blocks of its own, and what is added fills new ones
        lowest = 0.0 if stage == "0" else 1e-6
        assert lowest <= min(run["errors"].values()) <= max(run["errors"].values()) < 0.03, stage
        assert run["steps"] == [3, 3, 3]


def test_all_weights_train_with_moments_of_8_bits() -> None:
    """On plain PyTorch: the loss of a regression falls as with torch's AdamW; few numbers keep moments in fp32."""
    losses = {}
    run = RunConfig(learning_rate=1e-2, optim="adamw_8bit")
    make = adam8bit.maker(run)
    assert make is not None and adam8bit.maker(RunConfig()) is None
    for name in ("adamw_8bit", "adamw_torch"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 8))
        x, y = torch.randn(256, 64), torch.randn(256, 8)
        parameters = list(model.parameters())
        optimizer = make(parameters) if name == "adamw_8bit" else torch.optim.AdamW(parameters, 1e-2, weight_decay=0.0)
        losses[name] = []
        for _ in range(60):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
        if name == "adamw_8bit":
            dtypes = [optimizer.state[p]["state1"].dtype for p in parameters]
            assert dtypes == [torch.uint8, torch.float32, torch.float32, torch.float32]
    eight, full = losses["adamw_8bit"], losses["adamw_torch"]
    assert eight[-1] < 0.3 * eight[0] and np.allclose(eight, full, rtol=0.05, atol=0.01)


def test_blocks_are_put_back_bit_for_bit_and_else_quantized() -> None:
    make = adam8bit.maker(RunConfig(optim="adamw_8bit"))
    assert make is not None
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5000))
    optimizer = make([weight])
    for _ in range(3):
        weight.grad = torch.randn(5000)
        optimizer.step()
    adam8bit.unpack(optimizer, weight)
    state = {"step": 3.0, **{key: optimizer.state[weight][key].clone() for key in adam8bit.NUMBERS}}
    adam8bit.drop(optimizer, weight)
    blocks = adam8bit.raw(optimizer, weight)
    assert set(blocks) == {"state1", "state2", "absmax1", "absmax2"}
    for given in (blocks, {}):
        other = make([weight])
        other.state[weight] = dict(state)
        adam8bit.pack(other, weight, given)
        restored = adam8bit.raw(other, weight)
        same = [torch.equal(restored[key], blocks[key]) for key in blocks]
        # a block whose largest moment is negative comes back with another scale
        assert all(same) == bool(given)
        adam8bit.unpack(other, weight)
        for key in adam8bit.NUMBERS:
            error = (other.state[weight][key] - state[key]).norm() / state[key].norm()
            assert error < 0.01 and other.state[weight]["step"] == 3
