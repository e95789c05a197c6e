"""Runs tasks of lm-evaluation-harness on a loaded model, and the suite of the paper.

`eval.mmlu` runs the harness's task `mmlu`: with the same prompts and choices, but the shots run once a subject.
Needs the extra [eval]. No other module imports lm_eval.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.data import mmlu as mmlu_data
from apt_ds.eval import mmlu
from apt_ds.eval.loading import LoadedModel
from apt_ds.runtime import collectives, zero

MMLU = "mmlu"
# suite to task to shots and main metric
SUITES: dict[str, dict[str, tuple[int | None, str]]] = {
    "open-llm": {
        "arc_challenge": (25, "acc_norm"),
        "hellaswag": (10, "acc_norm"),
        MMLU: (5, "acc"),
        "truthfulqa_mc2": (0, "acc"),
    }
}


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        tasks: Task to its shots (None means the task's default) and its main metric ('' means none).
        data_dir: A folder of local data sets, or ''.
        limit: Questions of each task. 0 means all.
        batch_size: Questions per device and forward pass.
    """

    tasks: dict[str, tuple[int | None, str]]
    data_dir: str = ""
    limit: int = 0
    batch_size: int = 8


class DistributedLM(HFLM):
    """The harness's interface to a loaded model. It distributes the questions over ranks.

    With sharded weights every rank answers all questions: a forward pass needs every rank, but the harness gives ranks
    different numbers of batches.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int) -> None:
        self.distributes = collectives.ready() and not zero.is_partitioned(loaded.model)
        # the harness warns that it does not convert the model
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        super().__init__(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)

    @property
    def rank(self) -> int:
        """This rank, 0 if every rank answers all questions."""
        return collectives.rank() if self.distributes else 0

    @property
    def world_size(self) -> int:
        """The ranks that share the questions."""
        return collectives.world_size() if self.distributes else 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The scalar of every rank, [world size]. Collective."""
        return torch.tensor(collectives.gather_objects(tensor.item()))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all ranks on rank `dst`, None on others. Collective."""
        values = collectives.gather_objects(obj)
        return values if self.rank == dst else None

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        collectives.barrier()


def run(loaded: LoadedModel, request: Request) -> dict[str, Any]:
    """Run the tasks. Collective.

    Args:
        loaded: A causal language model.
        request: What to run.

    Returns:
        {task: {metric: value, metric_stderr: value, "shots": n, "metric": main metric}}, the same on all ranks.

    Raises:
        UserError: A task is unknown, or its data cannot be loaded.
    """
    manager = task_manager()
    check_tasks(request.tasks, manager.all_tasks)
    results: dict[str, Any] = {}
    for task, (shots, metric) in request.tasks.items():
        if task == MMLU:
            results[task] = run_mmlu_task(loaded, request, 5 if shots is None else shots)
        else:
            results[task] = run_harness_task(loaded, request, task, shots, manager)
        if metric:
            results[task]["metric"] = metric
    return results


@lru_cache(maxsize=1)
def task_manager() -> TaskManager:
    """The index of all tasks. Creating it takes seconds."""
    return TaskManager()


def check_tasks(names: dict[str, Any], known: list[str]) -> None:
    """Check the names of tasks.

    Raises:
        UserError: A task is unknown. The message suggests similar names.
    """
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {', '.join(similar)}?" if similar else "`lm-eval ls tasks` lists them"
            raise UserError(f"--tasks: {name!r} is not a task of lm-evaluation-harness; {hint}")


def run_mmlu_task(loaded: LoadedModel, request: Request, shots: int) -> dict[str, Any]:
    """MMLU, with the harness's names of metrics. Its data is in DATA_DIR/mmlu, or in DATA_DIR itself. Collective."""
    folder = Path(request.data_dir)
    subfolder = folder / MMLU
    data_dir = "" if not request.data_dir else str(subfolder if subfolder.is_dir() else folder)
    questions = mmlu_data.load(data_dir, limit=request.limit)
    settings = mmlu.Settings(num_shots=shots, batch_size=request.batch_size)
    figures = mmlu.evaluate(loaded.runner, loaded.tokenizer, questions, settings).figures()
    return {"acc": figures["accuracy"], "acc_stderr": figures["stderr"], "shots": shots}


def run_harness_task(
    loaded: LoadedModel, request: Request, task: str, shots: int | None, manager: TaskManager
) -> dict[str, Any]:
    """One task or group of tasks, run by the harness. Collective."""
    with local_data(request.data_dir):
        results = simple_evaluate(
            model=DistributedLM(loaded, request.batch_size),
            tasks=[task],
            num_fewshot=shots,
            limit=request.limit or None,
            task_manager=manager,
            bootstrap_iters=1000,
            log_samples=False,
        )
    # only rank 0 has results
    return collectives.on_main(lambda: unfiltered_metrics(task, results or {}))


def unfiltered_metrics(task: str, results: dict[str, Any]) -> dict[str, Any]:
    """Metric name to value. The harness adds the name of a filter after a comma, which is dropped."""
    row = results["groups"][task] if task in results.get("groups", {}) else results["results"][task]
    values = {key.split(",")[0]: value for key, value in row.items() if isinstance(value, float)}
    shots = {n for n in results.get("n-shot", {}).values() if isinstance(n, int)}
    return values | ({"shots": shots.pop()} if len(shots) == 1 else {})


@contextmanager
def local_data(data_dir: str) -> Iterator[None]:
    """Inside the context `datasets.load_dataset` reads data sets from `data_dir` first.

    Of a data set `owner/name` with configuration `part` it reads the first of the folders `owner/name/part`,
    `name/part`, `owner/name` and `name`. A folder has one JSON, JSON lines or parquet file named after each split.

    Raises:
        UserError: A data set cannot be loaded. Raised inside the context.
    """
    original = datasets.load_dataset

    def load(path: str, name: str | None = None, **more: Any) -> Any:
        folder = find_folder(Path(data_dir), path, name) if data_dir else None
        try:
            return original(path, name, **more) if folder is None else original(str(folder))
        except Exception as error:  # `datasets` has no common error type
            reason = " ".join(str(error).split())[:160]
            subfolder = "/".join([path.rpartition("/")[2], *([name] if name else [])])
            raise UserError(
                f"data set {path}{f' ({name})' if name else ''} is missing and cannot be loaded ({reason}); "
                f"give --data_dir with its splits as JSON or parquet files in the folder {subfolder}"
            ) from None

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = original


def find_folder(root: Path, path: str, name: str | None) -> Path | None:
    """The folder of a data set under `root`, or None."""
    folders = [root / path, root / path.rpartition("/")[2]]
    places = [place / name for place in folders if name] + folders
    return next((place for place in places if place.is_dir()), None)


def render(results: dict[str, Any]) -> str:
    """The table: a line per task and metric, main metrics with a star, and the mean of the main metrics."""
    lines = [f"{'task':28}{'shots':>7}  {'metric':16}{'value':>9}{'± stderr':>10}"]
    main_values = []
    for task, row in results.items():
        names = [key for key in row if isinstance(row[key], float) and not key.endswith("_stderr")]
        for name in names:
            star = "*" if row.get("metric") == name else ""
            main_values += [row[name]] if star else []
            stderr = row.get(f"{name}_stderr")
            shown = f"{100 * stderr:.2f}" if isinstance(stderr, float) else ""
            lines.append(f"{task:28}{row.get('shots', ''):>7}  {name + star:16}{100 * row[name]:>8.2f}%{shown:>10}")
    if main_values:
        lines.append(f"mean of the metrics with a star: {100 * sum(main_values) / len(main_values):.2f} %")
    return "\n".join(lines)
