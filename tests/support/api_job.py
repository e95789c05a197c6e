"""A user's script in one process: runs one after the other, with mistakes between them."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import apt_ds


def process_state() -> dict[str, object]:
    """The state of the process that a run must not change."""
    import deepspeed
    import huggingface_hub
    import numpy as np
    import torch
    import transformers
    from transformers.integrations import is_deepspeed_zero3_enabled

    gc.collect()
    return {
        "engines": sum(isinstance(each, deepspeed.DeepSpeedEngine) for each in gc.get_objects()),
        "linear": str(torch.nn.functional.linear),
        "excepthook": str(sys.excepthook),
        "dtype": str(torch.get_default_dtype()),
        "random": [torch.get_rng_state().sum().item(), hash(random.getstate()), int(np.random.get_state()[1].sum())],
        "levels": [logging.getLogger(name).level for name in ("transformers", "datasets", "DeepSpeed", "apt_ds.data")],
        "bars": [
            transformers.utils.logging.is_progress_bar_enabled(),
            huggingface_hub.utils.are_progress_bars_disabled(),
        ],
        "filters": [str(each) for each in warnings.filters],
        "zero3": is_deepspeed_zero3_enabled(),
        "environment": {name: value for name, value in os.environ.items() if name != "KMP_INIT_AT_FORK"},
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
        "group": torch.distributed.is_initialized(),
        "threads": torch.get_num_threads(),
        "own_threads": sorted(each.name for each in threading.enumerate() if each.name in ("watchdog", "signals")),
    }


def stopped(run: apt_ds.RunConfig) -> str:
    """The text of the error of a run that gets SIGTERM in its second step."""
    from apt_ds.config.errors import Stopped
    from apt_ds.training.metrics import MetricsLogger

    log = MetricsLogger.step

    def kill(self: MetricsLogger, *values: Any, **named: Any) -> None:
        log(self, *values, **named)
        os.kill(os.getpid(), signal.SIGTERM)

    MetricsLogger.step = kill  # type: ignore[method-assign]
    try:
        apt_ds.train(run)
    except Stopped as error:
        return str(error)
    finally:
        MetricsLogger.step = log  # type: ignore[method-assign]
    return ""


def refused(action: Any, *values: Any, **flags: Any) -> str:
    """The text of the UserError that a call must raise."""
    try:
        action(*values, **flags)
    except apt_ds.UserError as error:
        return str(error)
    return ""


def run_all(folder: Path, configs: Path) -> dict[str, Any]:
    """All calls, and the state of the process after each, by name."""
    zero2, zero3 = str(configs / "zero2.json"), str(configs / "zero3.json")
    places = {"model_name_or_path": str(folder / "model"), "data_path": str(folder / "data.json"), "deepspeed": zero2}
    short = {"max_steps": 4, "sparsity": 0.4, "align": 4, "rank": 2, "max_seq_length": 64, "calibration_steps": 2}
    short |= {"per_device_train_batch_size": 2, "eval_size": 4, "report": False, "learning_rate": 1e-2}
    run = apt_ds.RunConfig(**places, **short, output_dir=str(folder / "first"), save_steps=2)
    # what the import of a library changes stays
    missing = refused(apt_ds.train, run.replace(data_path="nowhere", output_dir=str(folder / "none")))
    states = [process_state()]
    results: dict[str, Any] = {"no data": missing, "first": apt_ds.train(run)}
    states.append(process_state())
    results["occupied"] = refused(apt_ds.train, run)
    results["dry run"] = refused(apt_ds.train, run.replace(dry_run=True))
    states.append(process_state())
    for name, config in (("stopped", zero2), ("stopped sharded", zero3)):
        results[name] = stopped(run.replace(output_dir=str(folder / name.replace(" ", "-")), deepspeed=config))
        states.append(process_state())
    results["second"] = apt_ds.train(run.replace(output_dir=str(folder / "second")))
    results["sharded"] = apt_ds.train(run.replace(output_dir=str(folder / "sharded"), deepspeed=zero3))
    states.append(process_state())
    results["unfinished"] = refused(apt_ds.export, str(folder / "first" / "checkpoint-2"))
    written = folder / "first" / "model" / "model.safetensors"
    before = written.read_bytes()
    written.unlink()
    results["decided"] = refused(apt_ds.export, str(folder / "first"), output_dir=str(folder / "elsewhere"))
    apt_ds.export(str(folder / "first"))
    results["exported"] = written.read_bytes() == before
    cut = {key: value for key, value in short.items() if key not in ("max_steps", "learning_rate")}
    results["prune"] = apt_ds.prune(
        places["model_name_or_path"], places["data_path"], str(folder / "cut"), zero2, **cut
    )
    text = folder / "corpus.txt"
    text.write_text("the cat sees a dog " * 200, encoding="utf8")
    options: dict[str, Any] = {"perplexity": str(text), "block_length": 32}
    results["perplexity"] = apt_ds.evaluate(folder / "cut" / "model", **options)
    results["no measure"] = refused(apt_ds.evaluate, str(folder / "cut" / "model"))
    states.append(process_state())
    return results | {"states": states}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "results.json").write_text(json.dumps(run_all(place, Path(sys.argv[2]))), encoding="utf8")
