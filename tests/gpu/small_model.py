"""Makes the small LLaMA of the check, trains it a little on the bundled data, and names runs on it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import collate
from apt_ds.data.conversations import load_examples
from apt_ds.data.instructions import build_dataset
from tests.support.paths import ROOT

DRY = bool(os.environ.get("DRY"))
BUILTIN = ROOT / "apt_ds" / "data" / "builtin" / "instructions.jsonl"
EXAMPLES = 64 if DRY else 512
WIDTH, LAYERS = (128, 2) if DRY else (512, 6)
VOCABULARY = 2048
STEPS, SECONDS = (5, 20.0) if DRY else (300, 30.0)
RUN_STEPS = 4 if DRY else 12
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of these texts."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), show_progress=False)
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)


def small_model(vocabulary: int) -> LlamaForCausalLM:
    """Random weights. Sizes are multiples that 4 bits need."""
    torch.manual_seed(0)
    heads = WIDTH // 64
    sizes = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocabulary}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **tokens, max_position_embeddings=1024))


def main() -> None:
    """Write the model and its tokenizer to the folder `model` of the given folder, and some of the bundled data."""
    work = Path(sys.argv[1])
    tokenizer = tokenizer_of([m["content"] for example in load_examples(str(BUILTIN)) for m in example.messages])
    lines = BUILTIN.read_text(encoding="utf8").splitlines()[:EXAMPLES]
    data_of(work).write_text("\n".join(lines) + "\n", encoding="utf8")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = small_model(len(tokenizer)).to(device)
    rows = build_dataset(load_examples(str(data_of(work))), tokenizer, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    order = torch.randperm(len(rows)).tolist()
    start, losses = time.perf_counter(), []
    for step in range(STEPS):
        if time.perf_counter() - start > SECONDS:
            break
        batch = collate([rows[order[(8 * step + i) % len(rows)]] for i in range(8)], 0).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=batch.input_ids, labels=batch.labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], f"the loss has not fallen: {losses[0]:.3f} to {losses[-1]:.3f}"
    model.to(torch.bfloat16).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"OK   a model of {millions:.1f} M parameters, loss {losses[0]:.3f} to {losses[-1]:.3f}")


def data_of(work: Path) -> Path:
    """The file of the check's data."""
    return work / "data.jsonl"


def flags_of(work: Path, name: str, zero: str, flags: list[str]) -> list[str]:
    """The command line of a short run on the small model."""
    return [
        *("--deepspeed", str(ROOT / "ds_configs" / f"{zero}.json"), "--model_name_or_path", str(work / "model")),
        *("--data_path", str(data_of(work)), "--output_dir", str(work / "runs" / name), "--overwrite_output_dir"),
        *("--report", "false", "--save_steps", "0", "--eval_size", "8" if DRY else "32"),
        *("--max_steps", str(RUN_STEPS), "--max_seq_length", "128"),
        *("--per_device_train_batch_size", "2" if DRY else "8", "--learning_rate", "1e-3", "--warmup_steps", "1"),
        *flags,
    ]


def run_of(work: Path, name: str, zero: str, flags: list[str]) -> RunConfig:
    """A short run on the small model."""
    return resolve(flags_of(work, name, zero, flags))


if __name__ == "__main__":
    main()
