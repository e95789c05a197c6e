"""DeepSpeed files as people have them: what is read, what is accepted, and what is named as a mistake."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.deepspeed_json import read_json
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import zero
from tests.support.launcher import GRADUAL, Place, Run
from tests.support.paths import ROOT

FP16 = {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16}
ADAMW = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
WARMUP = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
SIZES = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
NO_OFFLOAD = {"device": "none", "pin_memory": True}
# as the documentation of transformers has them
EXAMPLES: dict[str, dict[str, Any]] = {
    "zero2": {
        "fp16": FP16 | {"hysteresis": 2, "min_loss_scale": 1},
        "bf16": {"enabled": "auto"},
        "optimizer": ADAMW,
        "scheduler": {"type": "WarmupLR", "params": WARMUP},
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": NO_OFFLOAD,
            "allgather_partitions": True,
            "allgather_bucket_size": 2e8,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 2e8,
            "contiguous_gradients": True,
        },
        **SIZES,
    },
    "zero3": {
        "fp16": FP16 | {"hysteresis": 2, "min_loss_scale": 1},
        "bf16": {"enabled": "auto"},
        "optimizer": ADAMW,
        "scheduler": {"type": "WarmupDecayLR", "params": WARMUP | {"total_num_steps": "auto"}},
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": NO_OFFLOAD,
            "offload_param": NO_OFFLOAD,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "sub_group_size": 1e9,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        **SIZES,
    },
}


def written(folder: Path, content: object) -> str:
    """The path of a DeepSpeed file with `content`."""
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf8")
    return str(path)


def resolved(path: str, *flags: str) -> tuple[RunConfig, dict[str, Any]]:
    """The run and what DeepSpeed would get for it."""
    config = resolve(["--deepspeed", path, *flags])
    return config, load_config(config, 1, 32)


def zero_section(**fields: object) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 2, **fields}}


OFF = {"enabled": False}
NAMED: dict[str, tuple[object, list[str]]] = {
    **{
        name: ({name: OFF}, [f"'{name}' is not supported here. Remove it"])
        for name in (
            *("curriculum_learning", "elasticity", "amp", "compression_training", "data_efficiency", "autotuning"),
            *("sparse_attention", "flops_profiler", "progressive_layer_drop", "eigenvalue", "quantize_training"),
            *("hybrid_engine", "activation_checkpointing", "torch_autocast", "nebula"),
            *("bfloat16", "tensor_parallel", "pipeline", "checkpoint", "comms_logger"),
        )
    },
    "an empty section": ({"compression_training": {}}, ["'compression_training' is not supported here"]),
    "pre-division": (
        {"prescale_gradients": True, "gradient_predivide_factor": 4.0},
        ["'prescale_gradients' is True, only False is supported"],
    ),
    "factor alone": ({"gradient_predivide_factor": 4.0}, ["'gradient_predivide_factor' is 4.0, only 1.0"]),
    "no check of gradients": (
        {"bf16": {"enabled": True, "check_grad_overflow": False}},
        ["'bf16.check_grad_overflow' is False, only true is supported. Remove it"],
    ),
    "no norm of gradients": (
        zero_section(compute_grad_norm=False),
        ["'zero_optimization.compute_grad_norm' is False, only true is supported. Remove it"],
    ),
    "British": ({"zero_optimisation": {"stage": 3}}, ["unknown section 'zero_optimisation'", "'zero_optimization'"]),
    "capitals": ({"Zero-Optimization": {}}, ["did you mean 'zero_optimization'?"]),
    "optimiser": ({"optimiser": {}}, ["did you mean 'optimizer'?"]),
    "per device": ({"train_micro_batch_size_per_device": 2}, ["did you mean 'train_micro_batch_size_per_gpu'?"]),
    "nothing near": ({"colour": 1}, ["unknown section 'colour'. Remove it"]),
    "outside": ({"stage": 3}, ["'stage' belongs inside 'zero_optimization'"]),
    "offload outside": ({"offload_optimizer": {"device": "cpu"}}, ["'offload_optimizer' belongs inside"]),
    "inside": (zero_section(bf16=OFF), ["'bf16' belongs at the top of the file"]),
    "a field": (zero_section(ofload_optimizer={}), ["unknown 'ofload_optimizer'", "did you mean 'offload_optimizer'?"]),
    "a long field": (
        zero_section(stage3_param_persistance_threshold=1),
        ["did you mean 'stage3_param_persistence_threshold'?"],
    ),
    "a field of a field": (
        zero_section(offload_optimizer={"divice": "cpu"}),
        ["'zero_optimization.offload_optimizer' has an unknown 'divice'", "did you mean 'device'?"],
    ),
    "a removed field": (zero_section(mics_shard_size=2), ["unknown 'mics_shard_size'"]),
    "an outdated field": (zero_section(cpu_offload=True), ["cpu_offload' is outdated", "offload_optimizer"]),
    "fp16": ({"fp16": {"loss_scale_windw": 1}}, ["'fp16' has an unknown", "'loss_scale_window'"]),
    "optimizer": ({"optimizer": {"type": "AdamW", "parms": {}}}, ["'optimizer' has an unknown 'parms'", "'params'"]),
    "a field of a monitor": (
        {"csv_monitor": {"enabled": True, "out_path": "x"}},
        ["unknown 'out_path'", "output_path"],
    ),
    "a monitor that is not installed": (
        {"comet": {"enabled": True}},
        ["'comet' needs the package comet_ml: install it"],
    ),
    "twice": ('{"steps_per_print": 1, "steps_per_print": 2}', ["'steps_per_print' more than once"]),
    "broken behind a comment": ('{ // one\n/* two\n */ "bf16": }', ["not JSON", "line 3"]),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_has_no_effect_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    content, parts = NAMED[name]
    with pytest.raises(UserError) as raised:
        zero.check_sections(written(tmp_path, content))
    assert [part for part in ["ds.json", *parts] if part not in str(raised.value)] == [], raised.value
    assert "\n" not in str(raised.value)


def test_values_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    content = {"prescale_gradients": False, "gradient_predivide_factor": 1.0, "dump_state": False, **EXAMPLES["zero3"]}
    zero.check_sections(written(tmp_path, content))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_comments_and_a_byte_order_mark_are_read(encoding: str, tmp_path: Path) -> None:
    text = """// a comment, with "quotes"
    { # another: {
      "text": "http://host/#part /* none */ \\" // none", /* of
      two lines, */ "list": [1, 2, // the last
      ], "number": 1e9, # "gone": 1,
    }
    """
    path = tmp_path / "ds.json"
    path.write_bytes(text.encode(encoding))
    expected = {"text": 'http://host/#part /* none */ " // none', "list": [1, 2], "number": 1e9}
    assert read_json(str(path)) == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_transformers_run(name: str, place: Place, tmp_path: Path, run: Run) -> None:
    """With a comment and a byte order mark; one line says who decides the schedule."""
    path = tmp_path / "ds.json"
    path.write_text("// from the documentation\n" + json.dumps(EXAMPLES[name]), encoding="utf-8-sig")
    words = ["--max_steps", "1", "--calibration_steps", "1", "--report", "false"]
    ended = run(place.words(tmp_path / "out", *words, deepspeed=path))
    assert ended.status == 0, ended.err
    notes = [line for line in ended.err.splitlines() if "'scheduler' is not used" in line]
    assert len(notes) == 1 and "--lr_scheduler_type" in notes[0]
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf8").splitlines()[-1])
    assert row["step"] == 1


def monitored(folder: Path, events: Path) -> str:
    """A DeepSpeed file with its two monitors that write files."""
    content = json.loads((ROOT / "ds_configs" / "zero2.json").read_text(encoding="utf8"))
    place = {"enabled": True, "output_path": str(events), "job_name": "job"}
    return written(folder, content | {"tensorboard": place, "csv_monitor": place})


def test_the_monitors_of_deepspeed_see_one_run(place: Place, tmp_path: Path, run: Run) -> None:
    """Every rebuild makes another engine. Its monitors go on where those before ended."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = monitored(tmp_path, tmp_path / "events")
    words = [*GRADUAL, "--max_steps", "6", "--report", "false", "--output_dir", str(tmp_path / "out")]
    ended = run(place.words(tmp_path / "out", *words, deepspeed=path))
    assert ended.status == 0, ended.err
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["seconds"]["rebuild"] > 0 for line in metrics) >= 1
    expected = [(2 * line["step"], pytest.approx(line["learning_rate"])) for line in metrics]
    board = EventAccumulator(str(tmp_path / "events" / "job")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("Train/Samples/lr")] == expected
    assert len(list((tmp_path / "events" / "job").glob("events.*"))) == 1
    rows = (tmp_path / "events" / "job" / "Train_Samples_lr.csv").read_text().splitlines()
    assert rows[0] == "step,lr" and [(int(a), float(b)) for a, b in (row.split(",") for row in rows[1:])] == expected


def test_a_monitor_that_breaks_ends_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        enabled = True

        def write_events(self, events: object) -> None:
            raise ConnectionError("no route")

    monitor = zero.Monitor(Broken())
    monitor.write_events([("a", 1.0, 1)])
    assert not monitor.enabled
    assert capsys.readouterr().err == "DeepSpeed's monitor failed: no route. The run goes on without it\n"


def test_a_section_that_offloads_nothing_is_removed(tmp_path: Path) -> None:
    _, config = resolved(written(tmp_path, EXAMPLES["zero3"]), "--optim", "adamw_8bit")
    assert not {"offload_optimizer", "offload_param"} & config["zero_optimization"].keys()
    _, config = resolved(written(tmp_path, EXAMPLES["zero2"]))
    assert config["optimizer"]["params"]["torch_adam"] is True and "scheduler" not in config


FLAGS = ["--learning_rate", "2e-4", "--max_steps", "100", "--warmup_ratio", "0.03"]
SCHEDULES: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "peak": ("WarmupLR", {"warmup_max_lr": 1e-3}, FLAGS, ["warmup_max_lr is 0.001", "--learning_rate means 0.0002"]),
    "steps by ratio": ("WarmupLR", {"warmup_num_steps": 4}, FLAGS, ["is 4 but --warmup_ratio means 3"]),
    "steps": ("WarmupLR", {"warmup_num_steps": 3}, [*FLAGS, "--warmup_steps", "5"], ["--warmup_steps means 5"]),
    "unknown steps": ("WarmupLR", {"warmup_num_steps": 3}, [], ["--warmup_ratio does not say how many"]),
    "total": ("WarmupDecayLR", {"total_num_steps": 99}, FLAGS, ["total_num_steps is 99 but --max_steps means 100"]),
    "floor": ("WarmupDecayLR", {"warmup_min_lr": 1e-5}, FLAGS, ["warmup_min_lr is 1e-05"]),
    "shape": ("WarmupLR", {"warmup_type": "log"}, FLAGS, ["warmup_type is 'log'", "'linear'"]),
    "another kind": ("OneCycle", {}, FLAGS, ["scheduler.type is 'OneCycle'", "--lr_scheduler_type"]),
    "a typing error": ("WarmupLR", {"warmup_maxlr": 1}, FLAGS, ["unknown 'warmup_maxlr'", "warmup_max_lr"]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_contradicts_the_flags_is_refused(name: str, tmp_path: Path) -> None:
    kind, params, flags, parts = SCHEDULES[name]
    path = written(tmp_path, {"scheduler": {"type": kind, "params": params}})
    with pytest.raises(UserError) as raised:
        resolved(path, *(flags or ["--max_steps", "-1", "--num_train_epochs", "2"]))
    assert [part for part in ["scheduler", *parts] if part not in str(raised.value)] == [], raised.value


def test_a_schedule_that_agrees_with_the_flags_is_accepted(tmp_path: Path) -> None:
    params = {"warmup_min_lr": 0, "warmup_max_lr": 2e-4, "warmup_num_steps": 3, "total_num_steps": 100}
    content = copy.deepcopy(EXAMPLES["zero2"]) | {"scheduler": {"type": "WarmupDecayLR", "params": params}}
    run, config = resolved(written(tmp_path, content), *FLAGS)
    assert run.optim.learning_rate == 2e-4 and "scheduler" not in config


def test_the_model_decides_how_much_is_prefetched_unless_the_file_does(tmp_path: Path) -> None:
    for given in ("auto", 1000):
        section = {"stage": 3, "stage3_prefetch_bucket_size": given}
        _, config = resolved(written(tmp_path, {"zero_optimization": section}))
        assert config["zero_optimization"]["stage3_prefetch_bucket_size"] == given
