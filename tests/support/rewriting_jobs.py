"""Jobs of `multiprocess.py` for the tests of --rewrite_answers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from apt_ds.models import loading
from apt_ds.runtime import collectives, zero
from apt_ds.training import datasets, dense_model, rewriting
from tests.support.counted_calls import CountedCalls
from tests.support.jobs import run_config


def shared(folder: str, output: str, stage: int, nodes: int) -> dict[str, Any]:
    """Fingerprints of the training data of two ranks at three starts, and how often each loaded the model.

    Each node has a cache of its own. The second start finds all files. At the third start a second node lacks its file.
    """
    node = collectives.rank() % nodes
    os.environ["LOCAL_RANK"] = str(collectives.rank() // nodes)
    cache = Path(output) / f"node_{node}"
    flags = [
        "--max_steps",
        "8",
        "--calibration_steps",
        "3",
        "--rewrite_answers",
        "--rewrite_max_new_tokens",
        "12",
        "--data_cache_dir",
        str(cache),
    ]
    run = run_config(folder, stage, False, flags)
    zero.init_distributed()
    load_model = dense_model.loading.load_model = CountedCalls(loading.load_model)
    base = loading.find_base(run.model.model_name_or_path)
    prints = []
    for start in range(3):
        if start == 2 and node:
            shutil.rmtree(cache)
        data = rewriting.with_own_answers(run, base, datasets.read_data(run, base))
        prints.append(data.fingerprints()["train"])
    return {
        "fingerprints": [name for each in collectives.gather_objects(prints) for name in each],
        "loaded": collectives.gather_objects(load_model.count),
    }
