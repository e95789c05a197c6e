"""Ready-made runs, here of language models. Each docstring has the command, the time and the score to expect."""

from __future__ import annotations

from collections.abc import Callable

from apt_ds.config import small_presets
from apt_ds.config.methods import Preset


def quickstart() -> Preset:
    """SmolLM2-135M on the built-in instructions, 30 % removed: a first look that needs no network and no GPU.

    Command: `bash launchers/quickstart.sh`
    Time: about 4 minutes on two CPU cores after installation.
    Expect: a held-out loss of 2.1 before, 2.8 right after the cut, 2.3 after tuning. Model and data are far too
    small for a score worth quoting.
    """
    return {
        "model_name_or_path": "builtin:smollm2",
        "data_path": "builtin:instructions",
        "output_dir": "apt_out/quickstart",
        "overwrite_output_dir": True,
        "sparsity": 0.3,
        "prune_blocks": "neurons",
        "adapter_targets": "q,v,down",
        # plain attention on a CPU, where it takes as long as the fused kernel
        "attn_implementation": "auto",
        "learning_rate": 1e-3,
        "bf16": True,
        "max_steps": 80,
        "per_device_train_batch_size": 4,
        "max_seq_length": 256,
        "calibration_steps": 12,
        "eval_size": 50,
    }


def llama2_7b_alpaca() -> Preset:
    """LLaMA-2 7B on Alpaca-GPT4, 30 % removed before tuning, by the paper's Table 6 (METHOD.md section 9).

    Command: `deepspeed --num_gpus 8 launchers/train.py --deepspeed ds_configs/zero3.json
    --preset llama2-7b-alpaca`. The global batch is 32: 4 per device on 8 devices. With fewer devices raise
    `--gradient_accumulation_steps` by the same factor.
    Time: the paper reports 106.0 % of LoRA's time per step, 75.8 % of its training memory.
    Expect: the paper reports ARC 45.4, HellaSwag 71.1, MMLU 36.9, TruthfulQA 46.6, average 50.0, against 57.9
    for LoRA without pruning. Inference 1.17x as fast in 67.2 % of the memory (METHOD.md section 10).
    """
    return {
        "model_name_or_path": "meta-llama/Llama-2-7b-hf",
        "data_path": "vicgalle/alpaca-gpt4",
        "output_dir": "apt_out/llama2-7b-alpaca",
        "max_seq_length": 512,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 15.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.03,
        "weight_decay": 0.0,
        "sparsity": 0.3,
        "pruning": "pretuning",
        "bf16": True,
        "gradient_checkpointing": True,
        "logging_steps": 10,
    }


def llama2_13b_alpaca() -> Preset:
    """LLaMA-2 13B on Alpaca-GPT4, 30 % removed before tuning, by the paper's Table 6: 4 examples per device.

    Command: `deepspeed --num_gpus 8 launchers/train.py --deepspeed ds_configs/zero3.json
    --preset llama2-13b-alpaca`
    Time: the paper gives none for this size.
    Expect: the paper reports an average of 55.6 over ARC, HellaSwag, MMLU and TruthfulQA, against 61.5 for
    LoRA without pruning (METHOD.md section 10).
    """
    return llama2_7b_alpaca() | {
        "model_name_or_path": "meta-llama/Llama-2-13b-hf",
        "output_dir": "apt_out/llama2-13b-alpaca",
        "per_device_train_batch_size": 4,
    }


PRESETS: dict[str, Callable[[], Preset]] = {
    "quickstart": quickstart,
    "llama2-7b-alpaca": llama2_7b_alpaca,
    "llama2-13b-alpaca": llama2_13b_alpaca,
    "minilm-sst2": small_presets.minilm_sst2,
    "roberta-sst2": small_presets.roberta_sst2,
    "roberta-mnli": small_presets.roberta_mnli,
    "roberta-squad": small_presets.roberta_squad,
    "roberta-glue-small": small_presets.roberta_glue_small,
    "t5-sst2": small_presets.t5_sst2,
    "t5-mnli": small_presets.t5_mnli,
    "t5-glue-small": small_presets.t5_glue_small,
    "t5-cnndm": small_presets.t5_cnndm,
}
