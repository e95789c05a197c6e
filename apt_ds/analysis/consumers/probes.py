"""The code that a consumer runs in a process of its own, where apt_ds cannot be imported.

Each probe defines `answer(case)`, which returns (tokens, log-probabilities) of the greedy continuation. A probe that
compares with something else than the model returns that as a third value.
"""

from __future__ import annotations

FRAME = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["apt_ds"] = None
{probe}

def main():
    results = []
    for case in json.load(open(sys.argv[1])):
        try:
            tokens, logprobs, *reference = answer(case)
            result = {"tokens": tokens, "logprobs": logprobs}
            if reference:
                result["reference"] = reference[0]
        except Exception as error:
            result = {"error": type(error).__name__ + ": " + " ".join(str(error).split())[:300]}
        results.append(result)
        json.dump(results, open(sys.argv[1] + ".out", "w"))
        if "error" in result:
            # a library may keep half of what failed. The next case gets a new process
            break

if __name__ == "__main__":
    main()
"""

TRANSFORMERS = """
import torch
from transformers import AutoModelForCausalLM

torch.set_grad_enabled(False)

def load(case, **options):
    model = AutoModelForCausalLM.from_pretrained(case["folder"], trust_remote_code=True, **options)
    return model.eval()

def greedy(model, case):
    tokens, values = list(case["prompt"]), []
    for _ in case["tokens"]:
        last = model(torch.tensor([tokens])).logits[0, -1].float().log_softmax(-1)
        tokens.append(int(last.argmax()))
        values.append(float(last.max()))
    return tokens[len(case["prompt"]):], values
"""

PLAIN = (
    TRANSFORMERS
    + """
def answer(case):
    model = load(case, torch_dtype=torch.float32)
    tokens, values = greedy(model, case)
    cached = model.generate(
        torch.tensor([case["prompt"]]), max_new_tokens=len(tokens), min_new_tokens=len(tokens), do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )[0, len(case["prompt"]):].tolist()
    if cached != tokens:
        raise ValueError("with a cache: %s, without: %s" % (cached, tokens))
    return tokens, values
"""
)

PIPELINE = """
from transformers import pipeline

def answer(case):
    made = pipeline("text-generation", model=case["folder"], trust_remote_code=True, dtype="float32", device="cpu")
    count = len(case["tokens"])
    found = made(
        case["text"], max_new_tokens=count, do_sample=False, return_tensors=True, add_special_tokens=False,
        eos_token_id=None, pad_token_id=0,
    )[0]["generated_token_ids"]
    return list(found)[-count:], []
"""

LM_EVAL = """
from lm_eval.models.huggingface import HFLM

def answer(case):
    model = HFLM(pretrained=case["folder"], device="cpu", dtype="float32", trust_remote_code=True, batch_size=1)
    values, before = [], 0.0
    for end in range(1, len(case["tokens"]) + 1):
        request = (("", ""), case["prompt"], case["tokens"][:end])
        (total, greedy), = model._loglikelihood_tokens([request], disable_tqdm=True)
        if not greedy:
            return case["tokens"][:end - 1], values
        values.append(total - before)
        before = total
    return case["tokens"], values
"""

PEFT = (
    TRANSFORMERS
    + '''
from peft import LoraConfig, get_peft_model

def answer(case):
    """New adapters change nothing. Trained ones are merged without a change."""
    torch.manual_seed(0)
    model = get_peft_model(load(case, dtype=torch.float32), LoraConfig(r=4, target_modules="all-linear")).eval()
    result = greedy(model, case)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    ids = torch.tensor([case["prompt"] + case["tokens"]])
    apart = model(ids).logits
    together = model.merge_and_unload()(ids).logits
    if not torch.allclose(apart, together, atol=1e-3):
        raise ValueError("merged adapters differ by %.1e" % float((apart - together).abs().max()))
    return result
'''
)

NF4 = (
    TRANSFORMERS
    + '''
import copy
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig

TIE = 0.15  # nats by which the kernel may prefer another token: it computes in bf16, with errors of 0.08

def along(model, prompt, tokens):
    """The model's choices after the reference's own tokens. A tie goes to the reference."""
    rows = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    values = [float(row[token]) for row, token in zip(rows, tokens)]
    best = [int(row.argmax()) for row in rows]
    ties = [float(row.max()) - value < TIE for row, value in zip(rows, values)]
    return [token if tie else other for token, other, tie in zip(tokens, best, ties)], values

def answer(case):
    """Compared with the same quantized weights as fp32 matrices."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = load(case, quantization_config=config, dtype=torch.float32, device_map="cpu")
    plain = load(case, dtype=torch.float32)
    count = 0
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data.copy_(weight)
            count += 1
    if not count:
        raise ValueError("no layer was quantized")
    tokens, values = greedy(plain, case)
    return (*along(model, case["prompt"], tokens), {"tokens": tokens, "logprobs": values})
'''
)

VLLM = """
import os
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# two parts of a model share the memory of one processor
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

def answer(case):
    model = None
    try:
        model = LLM(
            case["folder"], dtype="float32", max_model_len=64, enforce_eager=True, trust_remote_code=True,
            tensor_parallel_size=case.get("gpus", 1),
        )
        sampling = SamplingParams(temperature=0, max_tokens=len(case["tokens"]), logprobs=1, ignore_eos=True)
        found = model.generate([{"prompt_token_ids": case["prompt"]}], sampling)[0].outputs[0]
        values = [step[token].logprob for token, step in zip(found.token_ids, found.logprobs)]
        return list(found.token_ids), values
    finally:
        del model
        cleanup_dist_env_and_memory()
"""

LLAMA_CPP = """
import xllamacpp as llama

def answer(case):
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = case["gguf"], case["context"], 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, tokens, values = llama.Server(params), list(case["prompt"]), []
    # The server reports no token whose bytes end inside a character. So each step asks for a token that it reports. The
    # likeliest token beside it has the log-probability of the unchanged logits. Earlier tokens are in the cache.
    request = {"n_predict": 1, "temperature": 0.0, "n_probs": 1, "samplers": ["temperature"], "cache_prompt": True}
    request["logit_bias"] = [[case["prompt"][0], 1e6]]
    for _ in case["tokens"]:
        found = server.handle_completions(request | {"prompt": tokens})["choices"][0]["logprobs"]["content"][0]
        best = found["top_logprobs"][0]
        tokens.append(best["id"])
        values.append(best["logprob"])
    return tokens[len(case["prompt"]):], values
"""
