"""Tasks of lm-evaluation-harness on a loaded model, and the suite the method was published with.

The harness's `mmlu` is asked by `eval.mmlu`: the same prompts and choices, the shots computed once a subject.
Needs the extra [eval]; no other module imports lm_eval.
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
from unittest import mock

import datasets
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.data import mmlu as questions_of
from apt_ds.eval import mmlu
from apt_ds.eval.loading import LoadedModel
from apt_ds.runtime import collectives, zero

MMLU = "mmlu"
# suite: shots and the metric that counts, by task
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
    """Tasks with their shots (None: the task's own) and main metric ('': all equal), and what all of them share."""

    tasks: dict[str, tuple[int | None, str]]
    data_dir: str = ""
    limit: int = 0
    batch_size: int = 8


class SpreadLM(HFLM):
    """The harness's model around one that is loaded already, its questions spread over this run's ranks.

    Where weights are sharded every rank answers all questions: a pass needs every rank, and the harness's batches
    of a share differ in number.
    """

    def __init__(self, judged: LoadedModel, batch_size: int) -> None:
        self.spread = collectives.ready() and not zero.is_partitioned(judged.model)
        # the harness warns that it leaves the model as it is
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        super().__init__(pretrained=judged.model, tokenizer=judged.tokenizer, batch_size=batch_size)

    @property
    def rank(self) -> int:
        return collectives.rank() if self.spread else 0

    @property
    def world_size(self) -> int:
        return collectives.world_size() if self.spread else 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.tensor(collectives.gather_objects(tensor.item()))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        values = collectives.gather_objects(obj)
        return values if self.rank == dst else None

    def barrier(self) -> None:
        collectives.barrier()


def run(judged: LoadedModel, request: Request) -> dict[str, Any]:
    """Metrics of every task: {task: {metric: value, metric_stderr: value, "shots": n}}; the same on all ranks.

    Raises:
        UserError: an unknown task, or data that is neither here nor in reach.
    """
    manager = task_manager()
    check_tasks(request.tasks, manager.all_tasks)
    found: dict[str, Any] = {}
    for task, (shots, metric) in request.tasks.items():
        if task == MMLU:
            found[task] = ask_mmlu(judged, request, 5 if shots is None else shots)
        else:
            found[task] = ask_harness(judged, request, task, shots, manager)
        if metric:
            found[task]["metric"] = metric
    return found


@lru_cache(maxsize=1)
def task_manager() -> TaskManager:
    """The index of all tasks, which takes seconds to make."""
    return TaskManager()


def check_tasks(names: dict[str, Any], known: list[str]) -> None:
    """Raise UserError for a name the harness has no task for, with the nearest ones."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            meant = f"did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them"
            raise UserError(f"--tasks: {name!r} is no task of lm-evaluation-harness; {meant}")


def ask_mmlu(judged: LoadedModel, request: Request, shots: int) -> dict[str, Any]:
    """MMLU's figures in the harness's words; the folder is DATA_DIR/mmlu, or DATA_DIR itself."""
    folder = Path(request.data_dir)
    inner = folder / MMLU
    data_dir = "" if not request.data_dir else str(inner if inner.is_dir() else folder)
    questions = questions_of.load(data_dir, limit=request.limit)
    settings = mmlu.Settings(num_shots=shots, batch_size=request.batch_size)
    figures = mmlu.evaluate(judged.runner, judged.tokenizer, questions, settings).figures()
    return {"acc": figures["accuracy"], "acc_stderr": figures["stderr"], "shots": shots}


def ask_harness(
    judged: LoadedModel, request: Request, task: str, shots: int | None, manager: TaskManager
) -> dict[str, Any]:
    """One task (or group) by the harness itself. Collective."""
    with local_data(request.data_dir):
        made = simple_evaluate(
            model=SpreadLM(judged, request.batch_size),
            tasks=[task],
            num_fewshot=shots,
            limit=request.limit or None,
            task_manager=manager,
            bootstrap_iters=1000,
            log_samples=False,
        )
    # only rank 0 has results
    return collectives.on_main(lambda: plain(task, made or {}))


def plain(task: str, made: dict[str, Any]) -> dict[str, Any]:
    """Numbers under their metric's name, without the name of the filter behind a comma."""
    row = made["groups"][task] if task in made.get("groups", {}) else made["results"][task]
    values = {key.split(",")[0]: value for key, value in row.items() if isinstance(value, float)}
    used = {n for n in made.get("n-shot", {}).values() if isinstance(n, int)}
    return values | ({"shots": used.pop()} if len(used) == 1 else {})


@contextmanager
def local_data(data_dir: str) -> Iterator[None]:
    """Inside, data sets that lie under `data_dir` are read from there, and a missing one is a UserError.

    A data set `owner/name` with configuration `part` is looked for as `owner/name/part`, `name/part`, `owner/name`
    and `name`; a folder holds a JSON, JSON lines or parquet file for each split, named after it.
    """
    original = datasets.load_dataset

    def load(path: str, name: str | None = None, **more: Any) -> Any:
        folder = find_folder(Path(data_dir), path, name) if data_dir else None
        try:
            return original(path, name, **more) if folder is None else original(str(folder))
        except Exception as error:  # the library raises whatever its parts do
            text = " ".join(str(error).split())[:160]
            own = "/".join([path.rpartition("/")[2], *([name] if name else [])])
            raise UserError(
                f"data set {path}{f' ({name})' if name else ''} is missing and cannot be loaded ({text}); "
                f"give --data_dir with its splits as JSON or parquet files in the folder {own}"
            ) from None

    with mock.patch.object(datasets, "load_dataset", load):
        yield


def find_folder(root: Path, path: str, name: str | None) -> Path | None:
    """Where under `root` a data set lies, None if it does not."""
    own = [root / path, root / path.rpartition("/")[2]]
    places = [place / name for place in own if name] + own
    return next((place for place in places if place.is_dir()), None)


def render(found: dict[str, Any]) -> str:
    """The table: a line per task and metric, the suite's own metric starred, and the mean of these."""
    lines = [f"{'task':28}{'shots':>7}  {'metric':16}{'value':>9}{'± stderr':>10}"]
    chosen = []
    for task, row in found.items():
        names = [key for key in row if isinstance(row[key], float) and not key.endswith("_stderr")]
        for name in names:
            star = "*" if row.get("metric") == name else ""
            chosen += [row[name]] if star else []
            spread = row.get(f"{name}_stderr")
            shown = f"{100 * spread:.2f}" if isinstance(spread, float) else ""
            lines.append(f"{task:28}{row.get('shots', ''):>7}  {name + star:16}{100 * row[name]:>8.2f}%{shown:>10}")
    if chosen:
        lines.append(f"mean of the metrics with a star: {100 * sum(chosen) / len(chosen):.2f} %")
    return "\n".join(lines)
