"""lm-evaluation-harness's own MMLU task over local questions: its template, its sampler, its request builder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.api.task import ConfigurableTask

from apt_ds.data.mmlu import Mmlu, Question

DEFAULT = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"


def mmlu_task(questions: Mmlu, subject: str, folder: Path, num_shots: int = 5) -> ConfigurableTask:
    """The installed task of one subject, with `questions` as its data set."""
    config: dict[str, Any] = yaml.safe_load((DEFAULT / "_default_template_yaml").read_text(encoding="utf8"))
    own = yaml.safe_load((DEFAULT / f"mmlu_{subject}.yaml").read_text(encoding="utf8"))
    files = {
        "dev": write(folder / f"{subject}_dev.json", questions.dev[subject]),
        "test": write(folder / f"{subject}_test.json", questions.test[subject]),
    }
    config |= {key: own[key] for key in ("description", "task")}
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "num_fewshot": num_shots}
    task = ConfigurableTask(config=config)
    task.build_all_requests(rank=0, world_size=1)
    return task


def write(path: Path, questions: list[Question]) -> str:
    """Write the records in the layout of the hub."""
    rows = [
        {"question": q.text, "subject": q.subject, "choices": list(q.choices), "answer": q.answer} for q in questions
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    return str(path)


def contexts(task: ConfigurableTask) -> list[str]:
    """The text before the answer, one for each question."""
    return [request.args[0] for request in task.instances if request.idx == 0]
