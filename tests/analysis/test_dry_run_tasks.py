"""The estimate of memory for encoders and T5: what is trained, and how near it comes to what runs take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from apt_ds.analysis import batch_bounds, dry_run
from apt_ds.analysis.fake_batches import Shape
from apt_ds.analysis.memory_trace import Footprint, measure
from apt_ds.config.resolve import resolve
from apt_ds.data.glue import labels_of
from apt_ds.losses.self_teacher import RANK
from apt_ds.models import loading
from apt_ds.training import datasets
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT

GRADUAL = ["--pruning", "gradual", "--structure", "adaptive", "--align", "4"]


@pytest.mark.parametrize("kind", ["bert-classes", "roberta-answers", "t5", "modernbert-classes", "deberta-answers"])
def test_heads_adapters_and_teacher_count(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--dry_run", "--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *tiny.save_task(tmp_path, kind)]
    words += ["--max_steps", "2", "--output_dir", str(tmp_path / "out"), "--rank_growth", "none"]
    run = resolve(words)
    base = loading.find_base(run.model.model_name_or_path, run.data.task, labels_of(run.data.task))
    shape = batch_bounds.micro_batches(run, datasets.read_data(run, base), 1, base.task_type)
    assert bool(shape.written) == bool(shape.trained) == (kind == "t5")

    def footprint(*more: str, shape: Shape = shape) -> Footprint:
        return measure(base, resolve([*words, *more]), shape, [shape], 2, trains_all_weights=False)

    plain, model = footprint(), tiny.small(kind)
    whole = {name: p.numel() for name, p in model.named_parameters()}
    # tied weights have one name each, and it may be another
    elements = sum(w.numel for w in plain.weights if "lora_" not in w.name)
    assert elements == sum(whole.values())
    heads = sum(n for name, n in whole.items() if name.rpartition(".")[0] in base.anatomy.task_heads)
    paths = {path for name in run.targets for path in base.anatomy.targets[name]}
    shapes = [model.get_submodule(path).weight.shape for path in paths]
    adapters = sum(2 * (rows + columns) for rows, columns in shapes)
    assert sum(w.numel for w in plain.weights if w.trained) == heads + adapters and bool(heads) == (kind != "t5")
    taught = footprint(*GRADUAL, "--distill")
    more = sum(w.numel for w in taught.weights) - sum(w.numel for w in plain.weights)
    assert more == 2 * RANK * base.anatomy.sizes.hidden
    assert taught.activations > footprint(*GRADUAL).activations > plain.activations
    # the teacher's outputs wait for all micro-batches but the first
    waiting = footprint(*GRADUAL, "--distill", "--gradient_accumulation_steps", "3").activations - taught.activations
    assert waiting >= 2 * 4 * shape.rows * shape.length * base.anatomy.sizes.hidden * len(base.anatomy.layers)
    previous = [*GRADUAL, "--distill", "--layer_match", "previous"]
    assert footprint(*previous, "--gradient_accumulation_steps", "3").activations == footprint(*previous).activations
    twice = shape._replace(rows=2 * shape.rows, trained=2 * shape.trained)
    assert 1.8 < footprint(shape=twice).activations / plain.activations < 2.2
    (tmp_path / "model" / "model.safetensors").unlink()
    dry_run.dry_run(run)
    out = capfd.readouterr().out.splitlines()
    assert "of 1 rank" in out[-17] and out[-1].startswith("fits: the host "), out


# name: (model, flags)
MEASURED = {
    "BERT fp32": ("bert", []),
    "BERT bf16": ("bert", ["--bf16"]),
    "BERT fp32, gradual, with a teacher": ("bert", [*GRADUAL, "--distill"]),
    "T5 fp32": ("t5", []),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Narrow random models whose activations weigh more than they do, and texts of one length."""
    place = tmp_path_factory.mktemp("tasks")
    sizes = {"vocab_size": 20000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
    BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=8)).save_pretrained(place / "bert")
    tiny.framing_tokenizer().save_pretrained(place / "bert")
    sizes = {"vocab_size": 20000, "d_model": 256, "d_ff": 1024, "num_layers": 4, "num_heads": 8, "d_kv": 32}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    T5ForConditionalGeneration(T5Config(**sizes, **tokens)).save_pretrained(place / "t5")
    tiny.tokenizer().save_pretrained(place / "t5")
    text = " ".join((tiny.WORDS * 6)[:120])
    for split in ("train", "validation"):
        rows = "".join(f"{text}\t{number % 2}\n" for number in range(24))
        (place / f"{split}.tsv").write_text(f"sentence\tlabel\n{rows}")
        (place / f"{split}.json").write_text(json.dumps([{"source": text, "target": text[:200]}] * 24))
    return place


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_for_a_task_is_within_15_percent(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glibc must return what is freed, or its habits are what is measured."""
    model, flags = MEASURED[name]
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    task, ending = ("sst2", "tsv") if model == "bert" else ("text", "json")
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--model_name_or_path", str(folder / model)]
    words += ["--task", task, "--data_path", str(folder / f"train.{ending}"), "--output_dir", str(folder / "out")]
    words += ["--eval_data_path", str(folder / f"validation.{ending}"), "--overwrite_output_dir", "--eval_size", "16"]
    words += ["--max_steps", "2", "--per_device_train_batch_size", "16", "--per_device_eval_batch_size", "16"]
    words += ["--calibration_steps", "1", "--report", "false", "--save_steps", "0", "--max_seq_length", "128", *flags]
    sizes = multiprocess.run(1, "fault_injection.memory", {"flags": words}, timeout=900, fresh=True)
    print(
        f"\n{name}: estimated {sizes['estimated'] / 1e6:,.0f} MB, measured {sizes['measured'] / 1e6:,.0f} MB", end=" "
    )
    assert abs(sizes["estimated"] / sizes["measured"] - 1) < 0.15, sizes
