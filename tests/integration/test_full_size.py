"""The main job on the real shapes of LLaMA-2 7B and LLaMA-3 8B, from a folder of random weights to the written model.

A run needs 20 GB of free memory, in 4 bits 15, and 32 GB of free disk. It takes some 15 minutes on two cores.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.launcher import launch
from tests.support.paths import ROOT

DISK = 32e9  # bytes that must be free
SHORT = [
    *("--preset", "llama2-7b-alpaca", "--data_path", "builtin:instructions", "--sparsity", "0.3", "--max_steps", "2"),
    *("--per_device_train_batch_size", "1", "--max_seq_length", "128", "--calibration_steps", "2", "--eval_size", "2"),
    *("--logging_steps", "1", "--save_steps", "0"),
    # on a CPU one fit of 11,008 inputs takes minutes
    *("--repair", "none"),
]
# published shape: bytes of memory that must be free, DeepSpeed file, more flags
RUNS = {
    "llama2-7b": (20e9, "zero3", []),
    "llama3-8b": (15e9, "zero2", ["--base_bits", "4", "--gradient_checkpointing"]),
}

# loads the folder as any user would, and writes some tokens
READER = """
import sys
sys.modules["apt_ds"] = None  # an import of it fails, installed or not
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
ids = AutoTokenizer.from_pretrained(sys.argv[1])("Name three colours.", return_tensors="pt").input_ids
assert torch.isfinite(model(ids).logits).all()
print(model.dtype, model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape[1] - ids.shape[1])
"""


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shape", RUNS)
def test_a_full_size_model_is_tuned_cut_written_and_loaded(shape: str, tmp_path: Path) -> None:
    memory, file, more = RUNS[shape]
    if psutil.virtual_memory().available < memory or shutil.disk_usage(tmp_path).free < DISK:
        pytest.skip(f"needs {memory / 1e9:.0f} GB of free memory and {DISK / 1e9:.0f} GB of free disk")
    base, out = tmp_path / "base", tmp_path / "out"
    make = [sys.executable, str(ROOT / "launchers" / "random_model.py"), str(base), "--shape", shape]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    flags = ["--deepspeed", f"ds_configs/{file}.json", "--model_name_or_path", str(base), "--output_dir", str(out)]
    ended = launch(1, [*SHORT, *flags, *more], timeout=5400)
    assert ended.status == 0, ended.err
    shutil.rmtree(base)

    pruning = json.loads((out / "summary.json").read_text(encoding="utf8"))["pruning"]
    assert 0.68 < pruning["kept"] <= 0.7
    read = subprocess.run(
        [sys.executable, "-c", READER, str(out / "model")], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert read.stdout.split() == ["torch.bfloat16", "4"]
