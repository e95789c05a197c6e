"""Writes the model card of a finished run, and the licence files of its base model."""

from __future__ import annotations

import platform
import shutil
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

import apt_ds
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import GLUE_TASKS, INSTRUCTIONS, SQUADS
from apt_ds.models.architectures.licence_terms import Terms, terms_of
from apt_ds.models.base import Base
from apt_ds.models.origin import UNKNOWN, Origin, is_repository, origin_of
from apt_ds.pruning.layer_sizes import describe
from apt_ds.runtime import zero
from apt_ds.training.model_card import prose, tables
from apt_ds.training.model_card.command import command_of
from apt_ds.training.model_card.loading import form_of
from apt_ds.training.summary_schema import Summary

CARD, NOTICE = "README.md", "NOTICE"
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "safetensors")
PIPELINES = {
    INSTRUCTIONS: "text-generation",
    "cnndm": "summarization",
    **dict.fromkeys(GLUE_TASKS, "text-classification"),
    **dict.fromkeys(SQUADS, "question-answering"),
}
FACTS = "apt_ds.json"


def write_card(run: RunConfig, base: Base, summary: Summary, folder: Path, world_size: int) -> None:
    """Write the card and the licence files into the folder of a written model.

    Args:
        run: the options.
        base: the base model.
        summary: figures of the finished run.
        folder: the model's folder.
        world_size: processes of the run.

    Raises:
        Exception: anything that stands in the way. The model itself is untouched.
    """
    origin = origin_of(run.model.model_name_or_path, base.source)
    for path in origin.files:
        shutil.copyfile(path, folder / path.name)
    terms = terms_of(origin.licence)
    if terms is not None and not any(path.name.upper().startswith(NOTICE) for path in origin.files):
        (folder / NOTICE).write_text(f"{terms.notice}\n", encoding="utf8")
    template = resources.files(__package__).joinpath("template.md.jinja").read_text(encoding="utf8")
    values = _values(run, base, summary, folder, world_size, origin, terms)
    card = ModelCard.from_template(metadata(run, origin), template_str=template, **values)
    partial = folder / f"{CARD}.tmp"
    partial.write_text(f"{str(card).rstrip()}\n", encoding="utf8")
    partial.replace(folder / CARD)


def metadata(run: RunConfig, origin: Origin) -> ModelCardData:
    """The YAML at the head of the card."""
    data = run.data.data_path
    datasets = [data] if is_repository(data) and not Path(data).exists() else None
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if origin.hub_name else {}
    licence_name = origin.licence_name or ("unknown" if origin.licence == UNKNOWN else None)
    return ModelCardData(
        base_model=origin.hub_name or None,
        **relation,
        license=origin.licence,
        license_name=licence_name,
        license_link=origin.licence_link or None,
        language=list(origin.languages) or None,
        library_name="transformers",
        pipeline_tag=PIPELINES.get(run.data.task),
        tags=["apt_ds", *(["pruned"] if run.pruning.prunes else []), "adaptive-pruning-and-tuning"],
        datasets=datasets,
    )


def title_of(run: RunConfig, terms: Terms | None) -> str:
    """The model's name: that of its repository, else of the output folder, as its licence demands it."""
    name = run.output.hub_model_id.rpartition("/")[2] or Path(run.output.output_dir).absolute().name
    if terms is not None and not name.startswith(terms.name_begins):
        return f"{terms.name_begins} {name}"
    return name


def _values(
    run: RunConfig, base: Base, summary: Summary, folder: Path, world_size: int, origin: Origin, terms: Terms | None
) -> dict[str, Any]:
    """What the template fills in."""
    pruning = summary["pruning"]
    before = describe(base.anatomy, base.anatomy.sizes)
    after = dict(pruning["sizes"])
    link = f"[{origin.name}](https://huggingface.co/{origin.hub_name})" if origin.hub_name else f"`{origin.name}`"
    return {
        "title": title_of(run, terms),
        "terms": terms,
        "base_link": link,
        "kept": pruning["kept"],
        "licence": origin.licence,
        "licence_name": origin.licence_name,
        "licence_link": origin.licence_link,
        "stated_by": origin.stated_by,
        "legal_files": [path.name for path in origin.files],
        "removed": prose.removed(run, pruning["kept"]),
        "grouped": shares_keys(base),
        "layers": tables.layers(before, after) if run.pruning.prunes else [],
        "hidden_before": before["hidden"],
        "hidden_after": after["hidden"],
        "facts": (folder / FACTS).is_file(),
        "data": prose.data(run, summary, world_size),
        "device": device_name(),
        "evaluations": tables.evaluations(summary),
        "training": summary["training"],
        "form": form_of(folder, base.task_type),
        "excluded": pruning["excluded"],
        "repository": run.output.hub_model_id or "FOLDER",
        "versions": versions(),
        "command": command_of(run, world_size),
    }


def shares_keys(base: Base) -> bool:
    """Whether several query heads of a layer share keys and values, so that they are removed together."""
    heads = getattr(base.config, "num_attention_heads", None)
    return getattr(base.config, "num_key_value_heads", heads) != heads


def versions() -> dict[str, str]:
    """Versions of what made the model."""
    packages = {"apt_ds": apt_ds.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return packages


def device_name() -> str:
    """The name of this process's device, for people."""
    device = zero.device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU ({platform.machine()})"
