"""What the processes of `multiprocess.py` do. Every function runs on all ranks and returns JSON."""

from __future__ import annotations

import copy
import errno
import gc
import hashlib
import json
import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import torch
from torch import nn

from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.data import kept, plain_text, prepared
from apt_ds.losses import task_losses
from apt_ds.models import adapter, loading
from apt_ds.models.loading import Base
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, zero
from apt_ds.runtime.packed import QuantizedParameter
from apt_ds.runtime.signals import StopSignals
from apt_ds.training import checkpoint, datasets, preflight, prepared_data, questions, trainer
from apt_ds.training import run as training_run
from apt_ds.training.checkpoint import finding
from apt_ds.training.early_end import EarlyEnd
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.metrics_schema import MetricsLine
from apt_ds.training.model_figures import ModelFigures
from tests.support.launcher import PLAIN
from tests.support.text_fixtures import pair_tokenizer

# weights stay sharded between uses only with these; a tiny model would be held whole otherwise
STRICT = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}


def zero_json(folder: str, stage: int, offload: bool = False) -> str:
    """A DeepSpeed file for a ZeRO stage."""
    section: dict[str, Any] = {"stage": stage} | (STRICT if stage == 3 else {})
    if offload:
        section["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            section["offload_param"] = {"device": "cpu"}
    path = Path(folder) / f"zero{stage}{'_offload' if offload else ''}_{collectives.rank()}.json"
    path.write_text(json.dumps({"zero_optimization": section, "train_batch_size": "auto"}), encoding="utf8")
    return str(path)


def run_config(folder: str, stage: int, offload: bool, flags: list[str]) -> RunConfig:
    """A run on the model and data of `folder`, a global batch of 4 on any world size."""
    place = Path(folder)
    return resolve(
        [
            *["--deepspeed", zero_json(folder, stage, offload), "--model_name_or_path", str(place / "model")],
            *["--data_path", str(place / "data.json"), "--output_dir", str(place / f"out_{collectives.world_size()}")],
            *["--overwrite_output_dir", "--eval_size", "4", "--max_seq_length", "64", "--report", "false"],
            *["--per_device_train_batch_size", "1", "--learning_rate", "1e-2"],
            *["--gradient_accumulation_steps", str(4 // collectives.world_size()), *PLAIN, *flags],
        ]
    )


def facts(made: trainer.Trainer, figures: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how a run is spread: losses, scores, decisions, kept blocks, ranks."""
    rows = (made.metrics_logger.folder / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    return {
        "losses": [json.loads(row)["loss"] for row in rows],
        "ranks": [json.loads(row)["ranks"]["mean"] for row in rows],
        "kept": [json.loads(row)["kept"] for row in rows],
        "scores": made.pruner.scorer.scores().tolist(),
        "importance": [] if made.pruner.growth.importance is None else made.pruner.growth.importance.tolist(),
        "alive": made.pruner.blocks.kept_ids.tolist(),
        "held_out": figures["after"]["held_out_loss"],
        "score": figures["after"].get("score"),
        "rebuilds": len(figures["pruning"]["rebuild_seconds"]),
        "repair": figures["pruning"].get("repair"),
        "allocation": figures["pruning"].get("allocation"),
        "scales": figures["pruning"].get("scales"),
    }


def runs(folder: str, stages: list[tuple[int, bool]], modes: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Whole runs for every ZeRO mode and every set of flags."""
    found = {}
    for stage, offload in stages:
        for mode, flags in modes.items():
            made = training_run.prepare(run_config(folder, stage, offload, flags))
            figures = made.run()
            # only the first rank writes metrics
            collectives.barrier()
            found[f"{stage}{'o' if offload else ''} {mode}"] = facts(made, figures)
    return found


def load_sharded(folder: str, model: str = "model") -> dict[str, Any]:
    """How much of the model this rank ever holds while it loads and right after."""
    from apt_ds.models import loading

    zero.init_distributed()
    run = run_config(folder, 3, False, ["--model_name_or_path", str(Path(folder) / model)])
    base = loading.find_base(run.model.model_name_or_path)

    config = load_config(run, collectives.world_size(), base.config.hidden_size)
    largest = 0
    original = nn.Module.register_parameter

    def watch(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal largest
        original(module, name, parameter)
        held = {id(t): t.numel() for t in gc.get_objects() if isinstance(t, nn.Parameter) and t.device.type != "meta"}
        largest = max(largest, sum(held.values()))

    nn.Module.register_parameter = watch
    sharding = zero.shard_while_loading(config)
    model = loading.load_model(base, run)
    nn.Module.register_parameter = original
    del sharding
    total = sum(zero.full_numel(p) for p in model.parameters())
    held = sum(p.numel() + p.ds_tensor.numel() for p in model.parameters())
    return {"total": total, "held": held, "largest": largest}


def devices_seen() -> list[list[str]]:
    """What each rank finds: the GPUs that it may see, DeepSpeed's accelerator, its device and its collectives."""
    zero.init_distributed()
    found = [os.environ["CUDA_VISIBLE_DEVICES"], os.environ["DS_ACCELERATOR"], zero.device().type]
    return collectives.gather_objects([*found, torch.distributed.get_backend()])


def disagree(odd: int) -> None:
    """All ranks but one have the same plan."""
    zero.init_distributed()
    collectives.agree("the plan of step 7", "other" if collectives.rank() == odd else "same")


def tokenized_once(folder: str) -> list[int]:
    """How many files each rank has read and tokenized, with two ranks on the first node and one on the second."""
    os.environ["LOCAL_RANK"] = str(collectives.rank() % 2)
    run = run_config(folder, 3, False, [])
    zero.init_distributed()
    calls = 0
    original = prepared_data.prepare

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*arguments)

    prepared_data.prepare = counted
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    collectives.agree("the data", data.train.fingerprint)
    assert datasets.TokenizedSet.from_bytes(data.train.to_bytes()) == data.train
    return collectives.gather_objects(calls)


def shared_cache(folder: str, cache: str) -> list[list[Any]]:
    """What each of two ranks of a node gets of a large data set: made here or not, fingerprints, files, a row."""
    os.environ["LOCAL_RANK"] = str(collectives.rank())
    run = run_config(folder, 3, False, ["--data_cache_dir", cache])
    zero.init_distributed()
    prepared.SMALL, prepared.SMALL_BYTES = 3, 10
    calls: list[str] = []
    original = prepared.write_rows
    prepared.write_rows = lambda *given: calls.append("made") or original(*given)  # type: ignore[func-returns-value]
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    mapped = "/rows_0" in Path("/proc/self/maps").read_text("utf-8")
    examples = [example.where.rpartition("/")[2] for example in data.held_out_examples]
    found = [len(calls), sorted(data.fingerprints().values()), mapped, data.train[0], data.held_out[0], examples]
    return collectives.gather_objects(found)


def kept_sets(folder: str, questions_path: str, text: str, cache: str) -> list[list[Any]]:
    """What each of two ranks of a node gets of SQuAD and of plain text: made here or not, fingerprints, rows."""
    os.environ["LOCAL_RANK"] = str(collectives.rank())
    flags = ["--data_cache_dir", cache, "--data_path", text, "--eval_size", "2"]
    run = run_config(folder, 3, False, flags)
    zero.init_distributed()
    questions.SMALL_BYTES = kept.SMALL_BYTES = 0
    calls: list[str] = []
    originals = kept.write_columns, plain_text.write_tokens
    kept.write_columns = lambda *given: calls.append("rows") or originals[0](*given)  # type: ignore[func-returns-value]
    plain_text.write_tokens = lambda *given: calls.append("tokens") or originals[1](*given)  # type: ignore[func-returns-value]
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    asked = run.replace(data_path=questions_path, max_seq_length=32, doc_stride=4, eval_size=5)
    base = cast(Base, SimpleNamespace(tokenizer=pair_tokenizer()))
    sets = questions.read_spans(asked, base, datetime.now())
    prints = [*sorted(data.fingerprints().values()), sets.train.fingerprint, sets.held_out.fingerprint]
    return collectives.gather_objects([calls, prints, data.train[0], sets.train[0], sets.held_out[0]])


def unlike_nodes(folder: str) -> list[str]:
    """Fingerprints of the training data of two nodes, of which the second has more rows than fit into memory."""
    os.environ["LOCAL_RANK"] = "0"
    cache = str(Path(folder) / f"cache_{collectives.rank()}")
    run = run_config(folder, 3, False, ["--data_cache_dir", cache])
    zero.init_distributed()
    if collectives.rank():
        prepared.SMALL, prepared.SMALL_BYTES = 3, 10
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    return collectives.gather_objects(data.train.fingerprint)


def clocks(folder: str, model: str, seconds: list[int]) -> list[list[str]]:
    """The first words of every rank's rows; each rank is a node of its own, whose clock stands at one of `seconds`."""
    os.environ["LOCAL_RANK"] = "0"
    run = run_config(folder, 3, False, ["--model_name_or_path", model])
    zero.init_distributed()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2024, 5, 6, 7, 8, seconds[collectives.rank()])

    datasets.datetime = Clock
    base = loading.find_base(run.model.model_name_or_path)
    data = datasets.read_data(run, base)
    rows = [*data.train.rows, *data.held_out.rows]
    return collectives.gather_objects(sorted({base.tokenizer.decode(row["input_ids"][:1]) for row in rows}))


def differing(folder: str, odd: int, change: str) -> None:
    """A run in which one rank has other data, another model, flag, DeepSpeed file or version."""
    # every rank a node of its own: ranks of one node share what the first has read
    os.environ["LOCAL_RANK"] = "0"
    zero.init_distributed()
    other = collectives.rank() == odd
    flags = ["--sparsity", "0.35"] if other and change == "flag" else []
    run = run_config(folder, 2 if other and change == "config" else 3, False, flags)
    if other and change == "data":
        run = run.replace(data_path=str(Path(folder) / "other" / "data.json"))
    if other and change == "model":
        run = run.replace(model_name_or_path=str(Path(folder) / "other" / "model"))
    if other and change == "version":
        # what a node with another release would say of itself
        real = preflight.version
        preflight.version = lambda name: "0.0.1" if name == "transformers" else real(name)
    training_run.train(run)


def unreadable_on(odd: int, folder: str) -> str:
    """What the ranks are told of a checkpoint whose tensors one of them cannot read."""
    zero.init_distributed()
    if collectives.rank() == odd:
        # what a stale handle of a network file system gives

        def stale(path: Path, names: list[str]) -> NoReturn:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        finding.shards.read = stale
    try:
        checkpoint.find(folder, Path(folder).parent)
    except UserError as error:
        told = collectives.gather_objects(str(error))
    return " ".join(sorted(set(told)))


def ended_by_a_full_disk(folder: str) -> list[list[Any]]:
    """Which ranks have a reason to end a run, and what ends each, where the first cannot write its metrics."""
    zero.init_distributed()
    if collectives.is_main():
        (Path(folder) / "metrics.jsonl").symlink_to("/dev/full")
    logger = MetricsLogger(Path(folder), 9, quiet=True)
    end = EarlyEnd(resolve(["--deepspeed", zero_json(folder, 2)]), StopSignals(), logger)
    line = {"step": 1, "loss": 1.0, "kept": 1.0, "ranks": {"mean": 8.0}}
    logger.step(cast(MetricsLine, line))
    reasons = collectives.gather_objects(end.received)
    end.listen_if(sum(reasons))
    try:
        end.end("after step 1")
    except UserError as error:
        return [reasons, collectives.gather_objects(str(error))]
    return [reasons]


def told(made: trainer.Trainer, figures: dict[str, Any]) -> dict[str, Any]:
    """All that a run says and writes and that does not measure time or memory."""
    timed = ("tokens_per_second", "peak_memory_bytes", "seconds")
    rows = [
        json.loads(row)
        for row in (made.metrics_logger.folder / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    ]
    weights = b"".join(
        path.read_bytes() for path in sorted((made.metrics_logger.folder / "model").glob("*.safetensors"))
    )
    measured = {key for key in ModelFigures.__annotations__ if key.endswith(("_seconds", "_bytes", "_per_second"))}
    measured -= {"checkpoint_bytes"}
    judged = {w: figures[w] for w in ("before", "after_cut", "after") if w in figures}
    return {
        "rows": [{key: value for key, value in row.items() if key not in timed} for row in rows],
        "judged": {w: {k: v for k, v in found.items() if k not in measured} for w, found in judged.items()},
        "rebuilds": len(figures["pruning"]["rebuild_seconds"]),
        "model": hashlib.sha256(weights).hexdigest(),
        "alive": made.pruner.blocks.kept_ids.tolist(),
        "scores": made.pruner.scorer.scores().tolist(),
        "held_out": figures["after"]["held_out_loss"],
        "score": figures["after"].get("score"),
        "searched": [
            {key: value for key, value in figures["pruning"].get(name, {}).items() if key != "seconds"}
            for name in ("allocation", "scales")
        ],
    }


def whole(folder: str, name: str, stage: int, offload: bool, flags: list[str]) -> dict[str, Any]:
    """A run into `folder/name`, and what it tells."""
    made = training_run.prepare(run_config(folder, stage, offload, ["--output_dir", str(Path(folder) / name), *flags]))
    figures = made.run()
    made.metrics_logger.close()
    collectives.barrier()
    return told(made, figures)


def resumed(folder: str, cases: list[tuple[str, int, bool, list[str], list[int]]]) -> dict[str, dict[str, Any]]:
    """For (name, stage, offload, flags, steps): a run that never stops, one that saves, one from each of `steps`."""
    found = {}
    for name, stage, offload, flags, steps in cases:
        runs = {"straight": whole(folder, f"{name}_straight", stage, offload, ["--save_steps", "0", *flags])}
        runs["saving"] = whole(folder, name, stage, offload, ["--save_steps", "1", *flags])
        for step in steps:
            source = str(Path(folder) / name / f"checkpoint-{step}")
            # whatever was drawn since must not matter
            torch.rand(step)
            go_on = ["--save_steps", "0", "--resume_from_checkpoint", source, *flags]
            runs[str(step)] = whole(folder, f"{name}_{step}", stage, offload, go_on)
        found[name] = runs
    return found


def refused(folder: str, flags: list[str]) -> str:
    """The one line that ends a run on this rank."""
    try:
        whole(folder, "refused", 2, False, flags)
    except UserError as error:
        return str(error)
    return ""


def continued(folder: str, sources: dict[str, list[str]], stages: list[tuple[int, bool]]) -> dict[str, Any]:
    """Runs from checkpoints of other worlds and stages."""
    return {
        f"{source} in {stage}{'o' if offload else ''}": whole(
            folder, "other", stage, offload, ["--save_steps", "0", "--resume_from_checkpoint", source, *flags]
        )
        for source, flags in sources.items()
        for stage, offload in stages
    }


def packed_shards(folder: str, flags: list[str]) -> dict[str, Any]:
    """How many bytes of each packed weight a rank holds under ZeRO-3: its share, at rest and before a backward pass."""
    made = training_run.prepare(run_config(folder, 3, False, flags))
    packed = [p for p in made.engine.module.parameters() if isinstance(p, QuantizedParameter)]
    found = {"whole": [p.full.numel() * p.bits // 8 for p in packed], "rest": [held(p) for p in packed]}
    loss = task_losses.summed_loss(made.engine, made.steps.batches.on_device(0, 0))
    found["waiting"] = [held(p) for p in packed]
    made.engine.backward(loss)
    made.engine.step()
    made.finish()
    return found


def held(parameter: nn.Parameter) -> int:
    """Bytes of a sharded parameter on this rank, gathered or not."""
    return (parameter.numel() + parameter.ds_tensor.numel()) * parameter.element_size()


def eight_bit_moments(folder: str, stages: list[tuple[int, bool]], flags: list[str]) -> dict[str, dict[str, Any]]:
    """What becomes of moments in 8 bits in a rebuild that changes nothing, and in one that cuts and grows."""
    found = {}
    original = zero.put_state
    for stage, offload in stages:
        made = training_run.prepare(run_config(folder, stage, offload, flags))
        for step in range(3):
            made.train_step(step)
        before = zero.take_state(made.engine)
        made.rebuild(3, Plan())
        after = zero.take_state(made.engine)
        same = [torch.equal(before.blocks[name], after.blocks[name]) for name in before.blocks]
        grown = next(path for path, _ in adapter.adapters(made.engine.module))
        wanted: list[zero.EngineState] = []

        def spy(engine: zero.Engine, state: zero.EngineState, wanted: list[zero.EngineState] = wanted) -> None:
            wanted.append(copy.deepcopy(state))
            original(engine, state)

        zero.put_state = spy
        made.rebuild(3, Plan(made.pruner.decide(made.pruner.scores(), 0.3), {grown: 12}))
        zero.put_state = original
        moved = zero.take_state(made.engine)
        errors = {}
        for key in ("master", "exp_avg", "exp_avg_sq"):
            # all at once: beside the large ones of its block a small tensor's moments are rounded to nothing
            a, b = (torch.cat([e[key].flatten() for e in s.tensors.values()]) for s in (wanted[0], moved))
            errors[key] = ((b - a).norm() / a.norm()).item()
        found[str(stage)] = {
            "same": all(same),
            "blocks": len(same),
            "errors": errors,
            "new": moved.tensors[f"{grown}.lora_A"]["exp_avg"][8:].abs().max().item(),
            "steps": [before.adam_step, after.adam_step, moved.adam_step],
        }
        made.train_step(3)
        made.finish()
    return found
