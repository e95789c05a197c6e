"""The names nearest to one that is unknown: by what other tools call it, by its words, by its letters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from apt_ds.config.renamed_flags import renamed

SHOWN = 2
ENOUGH = 0.6  # similarity of a name that is worth a suggestion
ALIKE = 0.8  # similarity of two words that are the same but for a typing error

# what other trainers and evaluators call an option, by the option. Where several fit, the first is suggested first
SYNONYMS = {
    "learning_rate": "lr base_lr max_lr peak_lr step_size",
    "per_device_train_batch_size": "batch_size bs batch bsz micro_batch_size train_batch_size per_gpu_train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size val_batch_size per_gpu_eval_batch_size",
    "gradient_accumulation_steps": "grad_accum grad_acc gradient_accumulation accumulation_steps",
    "num_train_epochs": "epochs epoch num_epochs n_epochs max_epochs",
    "max_steps": "steps num_steps max_train_steps train_steps iters max_iters num_iterations",
    "model_name_or_path": "model base_model model_path model_name model_id pretrained pretrained_model_name_or_path",
    "model": "model_name_or_path base_model model_path model_name model_id pretrained model_args",
    "data_path": "dataset data dataset_name dataset_path train_file train_data train_path train_dataset data_file",
    "eval_data_path": "validation_file eval_file eval_dataset eval_data val_data validation_data test_file",
    "data_dir": "data_path data dataset dataset_path",
    "output_dir": "output out out_dir output_path save_dir save_path",
    "json": "output output_dir output_path output_file out",
    "max_seq_length": "max_length max_len seq_len seq_length cutoff_len model_max_length max_source_length block_size",
    "block_length": "max_length max_len seq_len seq_length block_size max_seq_length",
    "max_length": "max_seq_length max_len seq_len context_length model_max_length",
    "max_target_length": "max_new_tokens target_length max_output_length generation_max_length",
    "new_tokens": "max_new_tokens",
    "rank": "lora_r lora_rank r lora_dim adapter_rank peft_r",
    "adapter_targets": "lora_target_modules target_modules lora_target lora_modules",
    "sparsity": "pruning_ratio target_sparsity sparsity_ratio prune_rate compression_ratio sparsity_level",
    "prune_every": "prune_interval pruning_interval prune_frequency",
    "warmup_ratio": "warmup warmup_fraction warmup_proportion",
    "warmup_steps": "warmup num_warmup_steps warmup_iters",
    "lr_scheduler_type": "scheduler lr_scheduler schedule lr_schedule lr_decay_style",
    "weight_decay": "wd",
    "max_grad_norm": "clip grad_clip gradient_clipping clip_grad clip_grad_norm gradient_clip_val",
    "optim": "optimizer optimizer_name",
    "resume_from_checkpoint": "resume resume_from checkpoint load_checkpoint ckpt resume_path",
    "overwrite_output_dir": "overwrite force overwrite_output",
    "deepspeed": "ds_config deepspeed_config ds deepspeed_json zero",
    "bf16": "precision dtype torch_dtype mixed_precision bfloat16",
    "fp16": "precision dtype torch_dtype mixed_precision half float16",
    "base_bits": "load_in_4bit load_in_8bit bits quantization quantize quantization_bit",
    "attn_implementation": "flash_attn use_flash_attn attention attn flash_attention",
    "gradient_checkpointing": "activation_checkpointing grad_checkpointing recompute",
    "eval_size": "val_set_size validation_split max_eval_samples",
    "eval_steps": "eval_interval eval_every val_check_interval evaluation_steps",
    "save_steps": "save_interval save_every checkpointing_steps checkpoint_every",
    "logging_steps": "log_interval log_every log_steps log_every_n_steps",
    "report_to": "log_with tracker trackers logger wandb tensorboard mlflow",
    "hub_model_id": "repo_id hub_repo hub_repo_id",
    "tasks": "task",
    "num_fewshot": "shots n_shot few_shot num_shots fewshot",
    "num_shots": "shots n_shot few_shot num_fewshot fewshot ntrain",
    "processes": "num_gpus num_processes nproc_per_node num_accelerators world_size",
    "sample": "max_samples num_samples",
    "limit": "max_samples num_samples",
}


def suggest(name: str, names: Iterable[str]) -> str:
    """A hint in brackets that names the nearest of `names`. Empty where none is near."""
    now = renamed(name)
    if now and now.split()[0].lstrip("-") in {each.lstrip("-") for each in names}:
        return f" (it is called {now} now)"
    close = nearest(name, names)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """At most two of `names`, the nearest first. Dashes and the case of letters do not count."""
    known = {plain(each): each for each in names}
    wanted = plain(name)
    if wanted in known:
        return [known[wanted]]
    if meant := [known[option] for option, others in SYNONYMS.items() if option in known and wanted in others.split()]:
        return meant[:SHOWN]
    scores = {each: likeness(wanted, each) for each in known}
    best = max(scores.values(), default=0.0)
    close = sorted((each for each in known if scores[each] >= max(ENOUGH, best - 0.1)), key=lambda e: -scores[e])
    return [known[each] for each in close[:SHOWN]]


def plain(name: str) -> str:
    """A name as it is compared: without leading dashes, in lower case, with underscores."""
    return name.lstrip("-").lower().replace("-", "_")


def likeness(wanted: str, name: str) -> float:
    """From 0 to 1: the letters that both have in order, or the words of `wanted` that `name` has, whichever is more."""
    letters = ratio(wanted, name)
    asked, words = [word for word in wanted.split("_") if word], name.split("_")
    if not asked:
        return letters
    shared = sum(best for word in asked if (best := max(ratio(word, other) for other in words)) >= ALIKE) / len(asked)
    # a short name with all the words is nearer than a long one
    return max(letters, shared * (0.7 + 0.3 * min(1.0, len(asked) / len(words))))


def ratio(one: str, other: str) -> float:
    """The share of letters that two words have in common, in order."""
    return difflib.SequenceMatcher(None, one, other).ratio()
