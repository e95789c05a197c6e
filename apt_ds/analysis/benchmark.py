"""Training cost of apt_ds next to PEFT's LoRA under the same DeepSpeed configuration, interleaved in one process.

Every round builds, warms up, times and drops each variant in turn. So drift of the machine affects all variants alike,
and no variant shares memory with another. All get the same batches as `train.py` makes them. PEFT computes the loss of
transformers on them, as the Hugging Face Trainer does. Generation is measured last.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from apt_ds.analysis import cluster_model
from apt_ds.analysis.bench import markdown, table
from apt_ds.analysis.bench.generation import GenerationSettings, inference
from apt_ds.analysis.bench.meters import peak_flops, process_bytes
from apt_ds.analysis.bench.requantization import rounding
from apt_ds.analysis.bench.synthetic import PREFIX, one_layer, random_base, random_data, shape_of
from apt_ds.analysis.bench.training import Timed, measure
from apt_ds.analysis.bench.variants import Variant, chosen
from apt_ds.analysis.cluster_model import Cluster, Load, Reached
from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import GlobalOrder
from apt_ds.data.conversations import load_examples
from apt_ds.data.instructions import build_dataset
from apt_ds.losses.token_losses import trained_tokens
from apt_ds.models import attention, loading
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives, zero
from apt_ds.runtime.files import write_json
from apt_ds.training.run_data import Data

LAST_STEP = 10**6  # so late that no schedule ends while steps are timed
CUTS = {"dense": 0.0, "cut30": 0.3, "cut50": 0.5}


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes:
        variants: names. None given: all that this machine can measure.
        rounds: how often every variant is built.
        steps: timed optimizer steps per round, after one of warm-up.
        generation: what is generated. None: generation is not measured.
        peak_tflops: of a device. 0: measured by a matrix product.
    """

    variants: tuple[str, ...] = ()
    rounds: int = 3
    steps: int = 3
    generation: GenerationSettings | None = None
    peak_tflops: float = 0.0


def benchmark(run: RunConfig, settings: Settings, json_path: str) -> table.Figures:
    """Measure, print a table and write the figures on rank 0. Collective.

    Raises:
        UserError: a variant is unknown or cannot be measured here, or `train.py` would refuse the input.
    """
    zero.init_distributed()
    loading.quiet_transformers()
    zero.check_sections(run.distributed.deepspeed)
    base, data = inputs(run)
    run = attention.resolve(run, base.config, loading.run_dtype(run), zero.device())
    config = load_config(run, collectives.world_size(), base.config.hidden_size)
    zero.check_config(config, run.distributed.deepspeed)
    variants, notes = chosen(list(settings.variants), config)
    peak = 1e12 * settings.peak_tflops or peak_flops(loading.run_dtype(run))
    process = max(collectives.gather_objects(process_bytes()))
    rounds = timed_rounds(variants, run, base, data, settings)
    load = load_of(run, data, settings.steps)
    figures = table.summarize(rounds, load, collectives.world_size(), peak, process)
    if process:
        notes.append(f"memory excludes the {process / 1e6:,.0f} MB of a process without a model")
    figures |= {
        "process_bytes": process,
        "notes": notes,
        "devices": collectives.world_size(),
        "peak_flops": peak,
        "load": asdict(load),
    }
    figures["shape"] = asdict(shape_of(base, base.anatomy, run))
    quantized = [variant for variant in variants if variant.bits < 16 and variant.sparsity]
    # read in 16 bits: the whole model may not fit where the quantized one did
    figures["rounding"] = {v.name: rounding(run, one_layer(base), v.sparsity, v.bits) for v in quantized}
    if settings.generation is not None:
        figures["inference"] = inference(run, base, CUTS, settings.generation)
        figures["static_is_captured"] = zero.device().type == "cuda"
    if collectives.is_main():
        print(table.render(figures), markdown.render(figures), sep="\n\n", flush=True)
        if json_path:
            write_json(Path(json_path), figures)
    return figures


def timed_rounds(
    variants: list[Variant], run: RunConfig, base: Base, data: Data, settings: Settings
) -> dict[str, list[Timed]]:
    """Measure every variant once in each round. Returns the measurements by the variant's name. Collective."""
    rounds: dict[str, list[Timed]] = {variant.name: [] for variant in variants}
    for number in range(1, settings.rounds + 1):
        for variant in variants:
            measurement = measure(variant, run, base, data, settings.steps)
            rounds[variant.name].append(measurement)
            if collectives.is_main():
                step = f"{statistics.median(measurement.seconds):.3f} s a step"
                print(f"round {number} of {settings.rounds}: {variant.what}, {step}", file=sys.stderr, flush=True)
            zero.free_memory()
    return rounds


def inputs(run: RunConfig) -> tuple[Base, Data]:
    """Model and data: those of `train.py`, or random ones. Collective. Raises UserError."""
    if run.model.model_name_or_path.startswith(PREFIX):
        base = random_base(run.model.model_name_or_path.removeprefix(PREFIX))
        return base, random_data(run, base, LAST_STEP)
    base = loading.find_base(run.model.model_name_or_path, trust=run.model.trust_remote_code)
    rows = build_dataset(load_examples(run.data.data_path), base.tokenizer, run.data.max_seq_length)
    batch = run.optim.global_batch(collectives.world_size())
    return base, Data(rows, rows, [], GlobalOrder(len(rows), batch, run.optim.seed), LAST_STEP, {})


def load_of(run: RunConfig, data: Data, steps: int) -> Load:
    """The average work of a device in a timed step."""
    rows = [data.train[i] for step in range(1, steps + 1) for i in data.order.indices(step)]
    lengths = [len(row["input_ids"]) for row in rows]
    shares = steps * collectives.world_size()
    trained = sum(trained_tokens(row) for row in rows)
    context = sum(n * n for n in lengths) / sum(lengths)
    return Load(sum(lengths) / shares, trained / shares, context, run.optim.gradient_accumulation_steps)


def predict(run: RunConfig, cluster: Cluster, sizes: tuple[int, ...], measured: str) -> str:
    """The table of `cluster_model` for a model of given sizes.

    Args:
        run: names the sizes of the model and the load.
        cluster: its `flops` is the peak of a device.
        sizes: numbers of devices.
        measured: a file of a benchmark's figures, which give the reached share of the measured peak. Empty: an assumed
            share of the cluster's peak.

    Raises:
        UserError: the sizes are unknown, or the file lacks figures of a benchmark.
    """
    base = random_base(run.model.model_name_or_path.removeprefix(PREFIX))
    reached = read_measured(measured) if measured else cluster_model.assumed(cluster.flops)
    length, examples = run.data.max_seq_length, run.optim.per_device_train_batch_size
    tokens = length * examples * run.optim.gradient_accumulation_steps
    load = Load(tokens, tokens, length, run.optim.gradient_accumulation_steps)
    shape = shape_of(base, base.anatomy, run)
    conditions: dict[str, object] = {"model": run.model.model_name_or_path, "tokens a device and step": tokens}
    conditions |= {"utilisation": round(reached.utilisation, 4), "utilisation is": reached.source}
    conditions |= asdict(cluster) | {"flops": reached.peak}
    return (
        f"{json.dumps(conditions)}\n{cluster_model.render(shape, load, replace(cluster, flops=reached.flops), sizes)}"
    )


def read_measured(path: str) -> Reached:
    """What a benchmark measured, from the file that its --json wrote.

    Raises:
        UserError: the file cannot be read, or lacks figures of dense training.
    """
    try:
        return cluster_model.measured(json.loads(Path(path).read_text(encoding="utf8")), path)
    except OSError as error:
        raise UserError(f"--measured {path!r}: {error.strerror}. Give a file that benchmark.py --json wrote") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(
            f"--measured {path!r}: utilisation of the variant dense or unscored is missing. Give a file that "
            "benchmark.py --json wrote"
        ) from None
