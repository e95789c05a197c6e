"""What a run ends with: `summary.json`, a table, and sample answers."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.export.write import Exported
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives, notices, profiler
from apt_ds.runtime.files import write_json
from apt_ds.training import end_table, quantized_export
from apt_ds.training.final_model import describe
from apt_ds.training.plain_models import compare_plain
from apt_ds.training.run_data import Data
from apt_ds.training.summary_schema import Summary
from apt_ds.training.training_figures import TrainingFigures


def report(run: RunConfig, base: Base, data: Data, summary: Summary, output: Path) -> Summary:
    """Complete the summary, write `summary.json` and print the table. Rank 0 works alone.

    Args:
        run: the options.
        base: the base model.
        data: questions of its evaluation set are answered before and after.
        summary: figures of the run.
        output: the run's output folder.
    """
    if not collectives.is_main():
        return summary
    if run.output.report and base.task_type == LANGUAGE_MODEL:
        compare_plain(run, base, data, output / "model", summary)
    summary["warnings"] = notices.kept()
    write_json(output / "summary.json", summary)
    print(render(summary), flush=True)
    print(f"model: {output / 'model'}", flush=True)
    return summary


def render(summary: Summary) -> str:
    """The table, and under it what was kept, the cost of the whole run, and the samples."""
    pruning = summary["pruning"]
    lines = [
        end_table.render(summary),
        f"kept {100 * pruning['kept']:.2f} % of the prunable parameters (target {100 * pruning['target_kept']:.2f} %): "
        f"{pruning['sizes']}",
        describe_cost(summary["training"]),
    ]
    if "profile" in summary:
        lines += ["", profiler.render(cast(dict[str, dict[str, dict[str, float]]], summary["profile"]))]
    if "quantized" in summary:
        lines.append(quantized_export.render(summary["quantized"]))
    if "written" in summary and (line := describe(Exported(**summary["written"]))):
        lines.append(line)
    if "note" in summary:
        lines.append(summary["note"])
    for sample in summary.get("samples", []):
        lines += ["", f"Q: {sample['question']}", f"before: {sample['before']}", f"after:  {sample['after']}"]
    return "\n".join(lines)


def describe_cost(training: TrainingFigures) -> str:
    """Seconds and peak memory of the whole run on the first rank, in one line."""
    parts = ", ".join(
        f"{part} {seconds:.1f}"
        for part, seconds in (
            ("steps", training["steps_seconds"]),
            ("scoring", training["scoring_seconds"]),
            ("rebuilds", training["rebuilds_seconds"]),
        )
    )
    line = f"training took {training['seconds']:.1f} s ({parts}), evaluation {training['evaluation_seconds']:.1f} s"
    peak, reserved, base = (
        training["peak_memory_bytes"],
        training["peak_reserved_bytes"],
        training["base_memory_bytes"],
    )
    line += f"; peak memory of training {peak / 1e6:,.0f} MB" if peak else ""
    line += f" with {base / 1e6:,.0f} MB of the process itself, which the table leaves out" if peak and base else ""
    return line + (f", {reserved / 1e6:,.0f} MB reserved" if reserved else "")
