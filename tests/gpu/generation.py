"""Generation speed of dense and cut models: as transformers generates, and with the decoding step as a CUDA graph.

At batch 1 the host launches kernels more slowly than a GPU runs them. A cut then saves little time. A captured step is
launched as a whole. Both ways decode greedily, prompts included, as the benchmark does. Without a GPU the captured way
runs the same step on the same fixed cache, without a graph.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from apt_ds.analysis.bench.generation import BATCHES, plain_model
from apt_ds.analysis.bench.synthetic import random_base
from apt_ds.analysis.benchmark import CUTS
from apt_ds.config.resolve import resolve
from apt_ds.eval.inference_timing import prompts, run_once
from apt_ds.runtime import zero
from apt_ds.runtime.clock import seconds_after
from apt_ds.runtime.files import write_json
from tests.support.paths import ROOT

DRY = bool(os.environ.get("DRY"))
PROMPT, NEW, ROUNDS = (4, 3, 1) if DRY else (128, 32, 2)
WARM = 2  # decoding steps before a graph is captured
AGREE = 0.9  # share of tokens that a captured step and the same step without a graph must have in common


class CapturedDecoding:
    """Greedy decoding of one batch size on a cache of fixed size.

    Attributes:
        cache: keys and values of all tokens.
        token: the last token of each sequence, int64 [batch, 1]. Every step replaces it.
        graph: the captured step. None on the CPU.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor, new: int) -> None:
        self.model, self.ids, self.new = model, ids, new
        self.cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + new + WARM + 1)
        self.token = torch.zeros(len(ids), 1, dtype=torch.int64, device=ids.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.prefill()
        if ids.is_cuda:
            self.capture()

    def prefill(self) -> None:
        """Read the prompts into an empty cache."""
        self.cache.reset()
        output = self.model(input_ids=self.ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.token.copy_(output.logits[:, -1:].argmax(-1))

    def step(self) -> None:
        """Decode one token of each sequence."""
        output = self.model(input_ids=self.token, past_key_values=self.cache, use_cache=True)
        self.token.copy_(output.logits[:, -1:].argmax(-1))

    def capture(self) -> None:
        """Warm up on a stream of its own, then capture one step. Capturing runs nothing."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def run(self, captured: bool = True) -> tuple[float, Tensor]:
        """Seconds of prompts and new tokens, and the new tokens, int64 [batch, new]."""
        start = seconds_after(self.ids.device)
        self.prefill()
        tokens = [self.token.clone()]
        for _ in range(self.new - 1):
            if self.graph is not None and captured:
                self.graph.replay()
            else:
                self.step()
            tokens.append(self.token.clone())
        return seconds_after(self.ids.device) - start, torch.cat(tokens, 1)


def eager_tokens(model: PreTrainedModel, ids: Tensor, new: int) -> Tensor:
    """The tokens that transformers generates, int64 [batch, new]."""
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                         do_sample=False, pad_token_id=0, eos_token_id=None)  # fmt: skip
    return out[:, ids.shape[1] :]


@torch.no_grad()
def measure(models: dict[str, PreTrainedModel], batch: int) -> dict[str, dict[str, float]]:
    """Tokens per second of each model in both ways, in turn, and the share of tokens in which the two agree."""
    ids = {name: prompts(model, batch, PROMPT) for name, model in models.items()}
    captured = {name: CapturedDecoding(model, ids[name], NEW) for name, model in models.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {"eager": [], "captured": []} for name in models}
    for turn in range(ROUNDS + 1):
        for name, model in models.items():
            times = {"eager": sum(run_once(model, ids[name], NEW)), "captured": captured[name].run()[0]}
            for way, value in times.items() if turn else ():  # the first turn warms up
                seconds[name][way].append(value)
    rates = {}
    for name, model in models.items():
        speeds = {way: batch * NEW / statistics.median(values) for way, values in seconds[name].items()}
        tokens = captured[name].run()[1]
        others = {"generate": eager_tokens(model, ids[name], NEW), "uncaptured": captured[name].run(captured=False)[1]}
        rates[name] = speeds | {f"as {way}": (tokens == other).float().mean().item() for way, other in others.items()}
    return rates


def describe(speeds: dict[str, float], dense: dict[str, float]) -> str:
    """The figures of a model in one line."""
    ratios = [f"{way} {speeds[way]:,.1f} tokens/s ({speeds[way] / dense[way]:.3f})" for way in ("eager", "captured")]
    shares = f"{100 * speeds['as uncaptured']:.0f} % and {100 * speeds['as generate']:.0f} % of its tokens"
    return f"{', '.join(ratios)}; without a graph and with `generate` {shares}"


def main() -> None:
    """Measure dense, 30 % and 50 % removed at all batch sizes. Status 1 if a captured step decodes something else."""
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--bf16", *(["--align", "8"] if DRY else [])]
    run = resolve([*words, "--model_name_or_path", f"random:{sys.argv[1]}", "--data_path", "random"])
    zero.init_distributed()
    base = random_base(sys.argv[1])
    start = time.perf_counter()
    models = {name: plain_model(run, base, sparsity) for name, sparsity in CUTS.items()}
    print(f"{len(models)} models after {time.perf_counter() - start:.1f} s", flush=True)
    figures, failed = {}, 0
    for batch in BATCHES:
        figures[f"batch {batch}"] = measure(models, batch)
        for name, speeds in figures[f"batch {batch}"].items():
            good = speeds["as uncaptured"] >= AGREE
            failed += not good
            text = describe(speeds, figures[f"batch {batch}"]["dense"])
            print(f"{'OK  ' if good else 'FAIL'} batch {batch}, {name}: {text}", flush=True)
        print(f"batch {batch} after {time.perf_counter() - start:.1f} s", flush=True)
    write_json(Path(sys.argv[2]), figures | {"prompt": PROMPT, "new": NEW})
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
