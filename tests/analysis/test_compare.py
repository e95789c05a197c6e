"""The comparison of methods: what it runs, what it goes on with, what it refuses, what it writes."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from apt_ds.analysis import compare
from apt_ds.analysis.compare import Comparison, complete, configure, plan
from apt_ds.analysis.compare_table import Trial, normalize
from apt_ds.analysis.result_table import markdown
from apt_ds.analysis.variants import Variant, parse_variants
from apt_ds.commands import compare as compare_command
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.training import run as training_run
from tests.support import multiprocess, tiny
from tests.support.launcher import script_caller
from tests.support.paths import ROOT

SHARED = Comparison(parse_variants("lora,apt,full"), (0.3, 0.5), (1, 2), 1, 1e-5, "", 10, False)


def test_what_prunes_nothing_runs_once_a_seed(tmp_path: Path) -> None:
    names = [trial.folder.name for trial in plan(SHARED, tmp_path)]
    assert names == [f"{run}-{seed}" for seed in (1, 2) for run in ("lora-0", "apt-30", "apt-50", "full-0")]
    assert plan(SHARED, tmp_path)[1] == Trial("apt", 0.3, 1, tmp_path / "apt-30-1")


def test_varied_options_are_crossed_and_have_columns(tmp_path: Path) -> None:
    varied = replace(SHARED, sparsities=(0.3,), seeds=(1,), vary=(("score", "salience", "random"), ("align", "8")))
    trials = plan(varied, tmp_path)
    assert [trial.folder.name for trial in trials] == [
        f"{run}-1-score={score}-align=8" for run in ("lora-0", "apt-30", "full-0") for score in ("salience", "random")
    ]
    assert len({trial.row for trial in trials}) == 6
    (tmp_path / "ds.json").write_text("{}", encoding="utf8")
    words = ["--deepspeed", str(tmp_path / "ds.json"), "--preset", "quickstart", "--align", "4"]
    config = configure(varied, trials[3], words)
    assert (config.source.method, config.pruning.score, config.pruning.align, config.output.output_dir) == (
        "apt",
        "random",
        8,
        str(trials[3].folder),
    )
    rows = [{"method": "apt", "removed": 0.3, "seeds": 1, "score": "random", "held_out_loss_cut": 3.25}]
    assert markdown(rows).splitlines()[::2] == [
        "| method | parameters removed, % | score | held-out loss after the cut |",
        "| apt | 30.0 | random | 3.250 |",
    ]


def test_a_method_has_options_and_rows_of_its_own(tmp_path: Path) -> None:
    methods = parse_variants("apt,apt[score=random,adapter_targets=q,v],apt[pruning=none]")
    varied = replace(SHARED, methods=methods, sparsities=(0.3,), seeds=(1,), vary=(("align", "8"),))
    varied.check()
    trials = plan(varied, tmp_path)
    assert [trial.folder.name for trial in trials] == [
        *("apt-30-1-align=8", "apt-score=random-adapter_targets=q,v-30-1-align=8", "apt-pruning=none-0-1-align=8"),
    ]
    assert len({trial.row for trial in trials}) == 3
    (tmp_path / "ds.json").write_text("{}", encoding="utf8")
    words = ["--deepspeed", str(tmp_path / "ds.json"), "--preset", "quickstart", "--score", "salience"]
    plain, own, unpruned = (configure(varied, trial, words) for trial in trials)
    assert (plain.pruning.score, own.pruning.score, own.pruning.align) == ("salience", "random", 8)
    assert (own.flag("adapter_targets"), plain.flag("adapter_targets")) == (
        "q,v",
        "q,v,down",
    ) and not unpruned.pruning.prunes
    with pytest.raises(UserError, match="--vary score is not allowed: it is given elsewhere"):
        replace(varied, vary=(("score", "salience"),)).check()


def test_names_that_no_folder_can_have_are_one_line(tmp_path: Path) -> None:
    """`--vary` may be given a long path, which is a part of the names of the runs' folders."""
    long = 300 * "x"
    for flag, name in (("--mmlu_data", "mmlu_data"), ("--local_suite", "local_data")):
        with pytest.raises(UserError, match=f"^{flag} 'xx.* is not a folder"):
            replace(SHARED, **{name: long}).check()
    room = 255 - len("lora-0-1-calibration_path=.yaml")
    plan(replace(SHARED, vary=(("calibration_path", room * "x"),)), tmp_path)
    with pytest.raises(
        UserError, match=r"^the options of a run 'lora-0-1-.*: give shorter values to --methods and --v"
    ):
        plan(replace(SHARED, vary=(("calibration_path", (room + 1) * "x"),)), tmp_path)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--seeds", "1.5"], "--seeds '1.5' is not allowed: give a comma-separated list of whole numbers"),
        (["--seeds", "1_0"], "--seeds '1_0' is not allowed: give a comma-separated list of whole numbers"),
        (["--sparsity", "0.3,x"], "--sparsity '0.3,x' is not allowed: give a comma-separated list of numbers"),
        (["--sparsity", "0.3_1"], "--sparsity '0.3_1' is not allowed: give a comma-separated list of numbers"),
        (["--processes", "1.5"], "--processes '1.5' is not allowed: give one whole number"),
        (["--processes", "1,2"], "--processes '1,2' is not allowed: give one whole number"),
        (["--full_learning_rate", "fast"], "--full_learning_rate 'fast' is not allowed: give one number"),
        (["--vary"], "--vary: give the name of an option and its values, nothing twice"),
        (["--vary", ""], "--vary: give the name of an option and its values, nothing twice"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    with pytest.raises(UserError) as caught:
        compare_command.main()
    assert str(caught.value) == problem


def test_the_papers_recipe_completes_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}", encoding="utf8")
    tiny.save_model(tmp_path / "model")
    named = ["--model_name_or_path", str(tmp_path / "model"), "--data_path", "data.json"]
    words = ["--deepspeed", str(tmp_path / "ds.json"), *named]
    paper, timed = resolve([*words, "--recipe", "paper"]), replace(SHARED, efficiency=True)
    done = complete(timed, paper)
    assert (done.full_num_train_epochs, done.inference_batch_size) == (10.0, 32)
    stated = replace(timed, full_num_train_epochs=2.0, inference_batch_size=8)
    assert complete(stated, paper) == stated
    assert complete(timed, resolve(words)) == timed


def test_full_tuning_has_its_own_rate_and_epochs(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}", encoding="utf8")
    words = ["--deepspeed", str(tmp_path / "ds.json"), "--preset", "quickstart"]
    lora, apt, _, full = plan(replace(SHARED, seeds=(1,)), tmp_path)
    own = replace(SHARED, full_learning_rate=2e-5, full_num_train_epochs=10.0)
    config = configure(own, full, words)
    assert (config.optim.learning_rate, config.optim.num_train_epochs, config.optim.max_steps) == (2e-5, 10.0, -1)
    for other in (configure(SHARED, full, words), configure(own, lora, words), configure(own, apt, words)):
        assert (other.optim.num_train_epochs, other.optim.max_steps) == (3.0, 80)


def test_every_method_that_trains_all_weights_has_the_rate_of_full_tuning(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}", encoding="utf8")
    words = ["--deepspeed", str(tmp_path / "ds.json"), "--preset", "quickstart"]
    own = replace(
        SHARED,
        methods=(Variant("mask_tuning"), Variant("flap")),
        sparsities=(0.3,),
        seeds=(1,),
        full_learning_rate=2e-5,
        full_num_train_epochs=9.0,
    )
    tuned, flap = (configure(own, trial, words) for trial in plan(own, tmp_path))
    assert (tuned.optim.learning_rate, flap.optim.learning_rate) == (2e-5, 1e-3)
    assert {(run.optim.num_train_epochs, run.optim.max_steps) for run in (tuned, flap)} == {(3.0, 80)}


def test_only_known_tables_are_made() -> None:
    script = ["bash", str(ROOT / "launchers" / "results.sh")]
    for words, part in (
        (["magic", "a", "b"], "error: magic is not a table"),
        (["sst2"], "Usage: bash launchers/results"),
        # all its options are known
        (["sweep", "nowhere", "out"], "error: --local_suite 'nowhere' is not a folder"),
    ):
        done = subprocess.run([*script, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and part in done.stderr


def command(folder: Path, *more: str) -> list[str]:
    """A small comparison into `folder/out`."""
    words = [
        *["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--model_name_or_path", str(folder / "model")],
        *["--data_path", str(folder / "data.json"), "--output_dir", str(folder / "out"), "--max_steps", "2"],
        *["--eval_size", "4", "--max_seq_length", "64", "--per_device_train_batch_size", "2", "--align", "4"],
        *["--calibration_steps", "1", "--methods", "lora,prune_lora", "--sparsity", "0.4", *more],
    ]
    return [sys.executable, str(ROOT / "launchers" / "compare.py"), *words]


def launch(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *more),
        env=multiprocess.environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.dist
def test_an_interrupted_comparison_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    # as far as an interruption after the first run lets it come
    first = launch(tmp_path, "--methods", "lora")
    assert first.returncode == 0, first.stderr[-3000:]
    out = tmp_path / "out"
    kept = (out / "lora-0-128" / "summary.json").stat().st_mtime_ns
    assert not (out / "prune_lora-40-128").exists()
    so_far = launch(tmp_path, "--finished_only")
    assert so_far.returncode == 0 and ".py" not in so_far.stdout, so_far.stderr[-3000:]
    assert [row["method"] for row in json.loads((out / "table.json").read_text(encoding="utf8"))] == ["lora"]
    second = launch(tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert (out / "lora-0-128" / "summary.json").stat().st_mtime_ns == kept
    assert "prune_lora-40-128: train.py" in second.stdout and "lora-0-128: train.py" not in second.stdout.split("\n")[0]
    rows = json.loads((out / "table.json").read_text(encoding="utf8"))
    assert [(row["method"], round(row["removed"], 2)) for row in rows] == [("lora", 0.0), ("prune_lora", 0.4)]
    assert rows[0]["train_time"] == 1.0 and rows[1]["held_out_loss"] > 0
    whole = json.loads((out / "prune_lora-40-128" / "summary.json").read_text(encoding="utf8"))["training"]
    assert rows[1]["whole_seconds"] == whole["seconds"] and rows[1]["whole_bytes"] == whole["peak_memory_bytes"]
    with (out / "table.csv").open(encoding="utf8") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["lora", "prune_lora"]
    other = launch(tmp_path, "--learning_rate", "0.5")
    assert other.returncode == 2 and "holds a run with --learning_rate 0.0001, not 0.5" in other.stderr


@pytest.mark.dist
def test_a_signal_stops_the_run_under_way_and_the_next_start_goes_on_from_it(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    options = ("--methods", "lora", "--max_steps", "100")
    started = subprocess.Popen(
        command(tmp_path, *options), env=multiprocess.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    run = tmp_path / "out" / "lora-0-128"
    until = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert started.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    _, stderr = started.communicate(timeout=300)
    assert started.returncode == 128 + signal.SIGTERM, stderr[-3000:]
    assert "stopped; run again to go on with what is missing" in stderr.decode()
    (saved,) = run.glob("checkpoint-*")
    step = int(saved.name.rpartition("-")[2])
    assert 0 < step < 100 and not (run / "summary.json").exists()
    for _ in range(2):  # the second finds it finished, with the same options
        done = launch(tmp_path, *options)
        assert done.returncode == 0, done.stderr[-3000:]
    lines = (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 101))
    assert "resume_from_checkpoint: last" in (run / "config.yaml").read_text(encoding="utf8")


def test_a_run_whose_last_cut_is_after_its_last_step_is_compared(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run is in this process. A launcher would start it."""
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    monkeypatch.setattr(compare, "run_training", lambda comparison, trial, config: training_run.train(config))
    words = command(tmp_path, "--methods", "apt", "--pruning", "gradual", "--pruning_phase", "1")[2:]
    done = script_caller(compare_command.main, capfd, monkeypatch)(*words)
    assert done.status == 0, done.err
    rows = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf8"))
    assert (rows[0]["step_seconds"], rows[0]["final_bytes"]) == (None, None)
    assert rows[0]["removed"] == pytest.approx(0.4, abs=0.05)
    assert rows[0]["whole_seconds"] > rows[0]["whole_steps_seconds"] > 0 and rows[0]["whole_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--methods", "lora,magic"], "--methods 'magic' is not allowed: give some of apt, lora"),
        (["--sparsity", "0.3,x"], "--sparsity '0.3,x' is not allowed"),
        (["--sparsity", "0.3,0.3"], "--sparsity 0.3,0.3 is not allowed: give each value once"),
        (["--finished_only"], "--finished_only found no finished run in "),
        (["--seeds", "1,2,1"], "--seeds 1,2,1 is not allowed: give each value once"),
        (["--sparsity", "1.0"], "--sparsity 1.0 is not allowed"),
        (["--mmlu_data", "nowhere"], "--mmlu_data 'nowhere' is not a folder"),
        (["--vary", "kurtosis", "off", "of"], "--kurtosis 'of' is not allowed: give one of normalized"),
        (["--vary", "kurtoss", "off"], "--kurtoss is an unknown option (did you mean --kurtosis"),
        (["--vary", "kurtosis"], "--vary kurtosis: give the name of an option and its values, nothing twice"),
        (["--vary"], "error: --vary: give the name of an option and its values, nothing twice"),
        (["--vary", "sparsity", "0.3"], "--vary sparsity is not allowed: it is given elsewhere"),
        (["--local_suite", "nowhere"], "--local_suite 'nowhere' is not a folder"),
        (["--seeds"], "argument --seeds: expected one argument"),
        (["--full_num_train_epochs", "-1"], "--full_num_train_epochs -1.0 is not allowed: give a number above 0"),
        (["--full_num_train_epochs", "1,2"], "--full_num_train_epochs '1,2' is not allowed: give one number"),
        (["--inference_batch_size", "-2", "--efficiency"], "--inference_batch_size -2 is not allowed"),
        (["--inference_batch_size", "4"], "--inference_batch_size requires --efficiency"),
        (["--push_to_hub"], "--push_to_hub does not support a comparison"),
    ],
)
def test_mistakes_are_one_line(words: list[str], part: str, tmp_path: Path) -> None:
    done = launch(tmp_path, *words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and part in lines[0]


def test_a_mistake_does_not_wait_for_torch(tmp_path: Path) -> None:
    program = "import sys\nfrom apt_ds.commands import compare\ntry:\n    compare.main()\n"
    program += "except Exception as error:\n    print(error, 'torch' in sys.modules)\n"
    words = [sys.executable, "-c", program, *command(tmp_path, "--local_suite", "nowhere")[2:]]
    done = subprocess.run(words, env=multiprocess.environment(), capture_output=True, text=True, check=True)
    assert "'nowhere' is not a folder" in done.stdout and done.stdout.split()[-1] == "False"


def test_a_task_is_timed_to_near_the_best_of_full_tuning() -> None:
    """The first evaluation within 97 %, once pruned; the costs are ratios to full fine-tuning."""

    def history(*scores: float, pruned: int) -> list[dict[str, object]]:
        return [
            {"step": 10 * i, "score": score, "seconds": 2.0 * i, "pruned": i >= pruned}
            for i, score in enumerate(scores, start=1)
        ]

    full, apt = {"method": "full", "dev_score": 88.0}, {"method": "apt", "dev_score": 87.0}
    weak = {"method": "lora_prune", "dev_score": 70.0}
    best, pruned = [history(80.0, 90.0, 88.0, pruned=1)], [history(89.0, 80.0, 87.3, 88.0, pruned=2)]
    never = [history(70.0, pruned=1)]
    normalize([full | {"sequences_per_second": 3.0}, weak], [best, never])  # nothing to divide by a missing figure
    full["sequences_per_second"], apt["sequences_per_second"] = 1.5, 3.0
    rows = [apt, full, weak]
    normalize(rows, [pruned, best, never])
    assert (full["near_steps"], apt["near_steps"], weak["near_steps"]) == (20, 30, None)
    assert (apt["near_time"], apt["inference_speed"]) == (1.5, 2.0)
    for row in rows:
        row["removed"] = 0.0
    lines = markdown(rows).splitlines()
    assert "| steps to 97 % of the best score of full | time to that score, % of full |" in lines[0]
    assert lines[2].endswith("| 30 | 150 | 2.00 |") and lines[4].endswith("| - | - | - |")
