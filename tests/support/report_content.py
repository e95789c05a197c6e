"""The content of the files of a short run, for tests of its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from apt_ds.analysis.run_report.content import Content, Json
from apt_ds.training.output_folder import COMMAND

BEFORE: Json = {"hidden": 8, "heads": [4, 4], "neurons": [10, 10]}
AFTER: Json = {"hidden": 8, "heads": [4, 2], "neurons": [5, 6]}
RANKS = {f"model.layers.{n}.{name}": 2 + 2 * n for n in (0, 1) for name in ("attn.q_proj", "attn.v_proj", "mlp.down")}


def line(step: int, loss: float | None = 2.0, **more: Any) -> Json:
    """A line of metrics."""
    return {
        "step": step,
        "loss": loss,
        "learning_rate": 0.1 / step,
        "kept": 1.0 if step < 3 else 0.6,
        "kept_parameters": 100 if step < 3 else 60,
        "target": 0.6,
        "ranks": {"min": 2, "mean": 2.5, "max": 3},
        "tokens_per_second": 10.0,
        "peak_memory_bytes": 3_000_000,
        "seconds": {"step": 0.5, "rebuild": 0.25, "salience": 0.0, "search": 0.125},
        **more,
    }


def metrics() -> list[Json]:
    """Four steps: the second has no finite loss, a cut follows it."""
    first = line(1, sizes_before=BEFORE, sizes=BEFORE)
    return [first, line(2, None, warnings=["not finite"]), line(3, 1.5, sizes=AFTER), line(4, 1.0)]


def figures(size: int, loss: float, memory: int) -> Json:
    """One evaluation."""
    return {
        "parameters": size,
        "checkpoint_bytes": 2 * size,
        "held_out_loss": loss,
        "held_out_perplexity": 7.0,
        "decode_tokens_per_second": 1e4 / size,
        "step_seconds": size / 1000,
        "peak_memory_bytes": memory + 500_000_000,
        "peak_added_bytes": memory,
        "peak_reserved_bytes": None,
    }


def summary() -> Json:
    """The summary of a finished run."""
    parts = {"forward": 0.2, "backward": 0.3, "gather": 1e-6}
    share = {"forward": 0.4, "backward": 0.6, "gather": 2e-6}
    profile = {"seconds": parts, "share": share, "steps": {"counted": 2}}
    return {
        "version": 1,
        "before": figures(1000, 2.0, 4_000_000),
        "after": figures(600, 2.5, 1_000_000),
        "data": {"train": 8, "held_out": 4, "dropped": 0, "steps": 4},
        "pruning": {"kept": 0.6, "layers": {"before": BEFORE, "after": AFTER}, "ranks": RANKS},
        "training": {
            "seconds": 3.0,
            "steps_seconds": 2.0,
            "scoring_seconds": 0.5,
            "rebuilds_seconds": 0.5,
            "evaluation_seconds": 1.0,
            "base_memory_bytes": 500_000_000,
            "memory_by_phase": {"loading": 2_000_000, "final_steps": 1_000_000},
        },
        "environment": {"command": "train.py --bf16", "world_size": 2, "device": "CPU", "versions": {"torch": "2"}},
        "profile": {"dense": profile, "cut": profile},
        "warnings": ["a scheduler is not used"],
        "samples": [{"question": "Q", "before": "<b>yes</b>", "after": "no & no"}],
    }


def finished(folder: Path = Path("out")) -> Content:
    """A finished run."""
    return Content(folder, summary(), metrics(), {"bf16": True, "sparsity": 0.4}, {})


def interrupted(folder: Path = Path("out")) -> Content:
    """A run that ended between two steps, with a checkpoint."""
    manifest = {"step": 2, "counts": {"total_steps": 8}, "shape": {"ranks": RANKS}}
    return Content(folder, None, metrics(), {"max_steps": -1}, manifest, "train.py --fp16")


def save(content: Content) -> Path:
    """Write the files of a run into its folder."""
    content.folder.mkdir(parents=True, exist_ok=True)
    config = f"{COMMAND}{content.command}\n{yaml.safe_dump(content.config)}"
    (content.folder / "config.yaml").write_text(config, encoding="utf8")
    lines = "".join(json.dumps(row) + "\n" for row in content.metrics)
    (content.folder / "metrics.jsonl").write_text(lines, encoding="utf8")
    if content.summary is not None:
        (content.folder / "summary.json").write_text(json.dumps(content.summary), encoding="utf8")
    if content.manifest:
        checkpoint = content.folder / f"checkpoint-{content.manifest['step']}"
        checkpoint.mkdir()
        (checkpoint / "manifest.json").write_text(json.dumps(content.manifest), encoding="utf8")
    return content.folder
