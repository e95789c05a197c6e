"""Answers of llama.cpp, by xllamacpp in another process, compared with those of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

PROMPT = [5, 6, 7, 8, 9, 100, 2000, 31]
ASK = """
import json, sys
import xllamacpp as llama
path, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
params = llama.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, int(sys.argv[4]), 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
request = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "n_probs": 5, "samplers": ["temperature"]}
request |= {"cache_prompt": False, "ignore_eos": True}
print(json.dumps(llama.Server(params).handle_completions(request)["choices"][0]["logprobs"]["content"]))
"""


def answers(file: Path, count: int = 8, prompt: list[int] | str = PROMPT, context: int = 128) -> list[dict[str, Any]]:
    """Greedy tokens of a GGUF file, each with its five likeliest rivals and their log-probabilities."""
    command = [sys.executable, "-c", ASK, str(file), json.dumps(prompt), str(count), str(context)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


def worst_difference(
    file: Path, folder: Path, count: int = 8, prompt: list[int] | None = None, rounded: bool = False
) -> float:
    """Largest difference of log-probabilities to transformers. The greedy tokens must be equal.

    rounded: whether transformers rounds the inputs of its products to 16 bits, as llama.cpp does for 16-bit weights.
    """
    prompt = prompt or PROMPT
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    for module in model.modules() if rounded else ():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].half().float(),))
    tokens, worst = torch.tensor([prompt]), 0.0
    for token in answers(file, count, prompt):
        with torch.no_grad():
            expected = model(tokens).logits[0, -1].log_softmax(-1)
        assert token["id"] == int(expected.argmax())
        worst = max(worst, *(abs(float(expected[rival["id"]]) - rival["logprob"]) for rival in token["top_logprobs"]))
        tokens = torch.cat([tokens, torch.tensor([[token["id"]]])], dim=1)
    return worst
