"""Step time and memory against PEFT's LoRA: `deepspeed launchers/benchmark.py --deepspeed ds_configs/zero3.json`.

Takes the options of `train.py` and those below; with `--dry_run` it only estimates the memory of such a run. Needs the
extra [dev] (peft), and bitsandbytes for what is in 4 bits.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

from apt_ds.config import cli
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import exit_status
from apt_ds.runtime.files import check_writable, write_json

MEASURED = (
    "figures of an earlier --json, such as train7.json of tests/gpu/check.sh. --predict takes utilisation and peak "
    "from it. By default a utilisation of 40 percent is assumed"
)


def read(argv: list[str]) -> tuple[argparse.Namespace, RunConfig]:
    """The script's own options and the run's. Raises UserError."""
    parser = cli.Parser("benchmark.py [options, and those of train.py]", add_help="--help" in argv)
    parser.add_argument(
        "--variants", type=cli.split_commas, default=[], help="some of the table's rows; all by default"
    )
    parser.add_argument("--rounds", type=cli.at_least(1), default=3, help="how often every variant is built")
    parser.add_argument("--steps", type=cli.at_least(1), default=3, help="timed steps of each round")
    parser.add_argument("--json", default="", help="a file for the figures")
    parser.add_argument(
        "--random_weights",
        default="",
        help="a published LLaMA such as llama2-7b, wide or tiny, :N for N layers, or a config.json",
    )
    parser.add_argument("--generate", type=cli.at_least(0), default=32, help="tokens to generate; 0: not measured")
    parser.add_argument("--prompt", type=cli.at_least(1), default=128, help="tokens of the prompt")
    parser.add_argument("--peak_tflops", type=cli.above_zero, help="of a device; measured by a product otherwise")
    parser.add_argument(
        "--predict", type=cli.counts, default=[], help="numbers of devices to predict a step for; runs nothing"
    )
    parser.add_argument("--measured", default="", help=MEASURED)
    parser.add_argument(
        "--intra_node_gbps", type=cli.above_zero, default=400.0, help="GB/s of a device, to others of its node"
    )
    parser.add_argument("--inter_node_gbps", type=cli.above_zero, default=320.0, help="GB/s of a node to others")
    parser.add_argument(
        "--data", action="store_true", help="measure reading and tokenizing alone: rows/s, memory, time to a batch"
    )
    parser.add_argument("--data_rows", type=cli.at_least(100), default=52_000, help="rows of the data set for --data")
    own, rest = parser.parse_known_args(argv)
    own.rest = rest
    if own.random_weights:
        rest += ["--model_name_or_path", f"random:{own.random_weights}", "--data_path", "random"]
    elif own.predict:
        raise UserError("--predict needs --random_weights, which says what sizes to predict for")
    run = resolve(rest, parser.names())
    if run.data.streaming:
        raise UserError("the benchmark does not support --streaming: leave it out, its rows fit into memory")
    return own, run


def main() -> None:
    """Benchmark as the command line says. Raises UserError."""
    own, run = read(sys.argv[1:])
    check_writable(own.json)
    if own.data:
        _measure_data(own)
        return
    try:
        from apt_ds.analysis.bench.generation import GenerationSettings
        from apt_ds.analysis.benchmark import Settings, benchmark, inputs, predict
        from apt_ds.analysis.cluster_model import Cluster
        from apt_ds.analysis.dry_run import dry_run
    except ModuleNotFoundError as error:
        raise UserError(f"the benchmark needs {error.name}: pip install 'apt_ds[dev]'") from None

    if run.distributed.dry_run:
        dry_run(run, inputs)
        return
    if own.predict:
        cluster = Cluster(1e12 * (own.peak_tflops or 989.0), 1e9 * own.intra_node_gbps, 1e9 * own.inter_node_gbps)
        print(predict(run, cluster, tuple(own.predict), own.measured))
        return
    generation = GenerationSettings(own.prompt, own.generate, own.rounds) if own.generate else None
    # the libraries stay to the end: the collection at every rebuild need not look at their objects
    gc.freeze()
    settings = Settings(tuple(own.variants), own.rounds, own.steps, generation, own.peak_tflops or 0.0)
    benchmark(run, settings, own.json)


def _measure_data(own: argparse.Namespace) -> None:
    from apt_ds.analysis.bench import data_start

    figures = data_start.measure(own.rest, own.data_rows)
    print(data_start.render(figures), flush=True)
    if own.json:
        write_json(Path(own.json), figures)


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
