"""`apt_ds.json` of a written model: what was kept of the base model, and what made it.

    facts = read_facts("out/model")
    keep = keep_of(facts, anatomy)  # the blocks of the base model that are left

`VERSION` goes up when a field changes its meaning or disappears. New fields may come without a new version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

import apt_ds
from apt_ds.config.errors import UserError
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices

VERSION = 1
FILE = "apt_ds.json"
FIELDS = {"version": int, "export_format": str, "base": dict, "sublayers": list, "hidden": list, "ranks": dict}


class BaseFacts(TypedDict):
    """The base model.

    Attributes:
        name: as --model_name_or_path has it, where that is no path of this machine. Else its last part.
        model_type: the family, as in config.json.
        task_type: a constant of `config/tasks.py`.
        fingerprint: of all its weights (`models/fingerprint.py`). '': unknown.
        parameters: number of prunable ones.
        hidden: number of hidden dimensions.
    """

    name: str
    model_type: str
    task_type: str
    fingerprint: str
    parameters: int
    hidden: int


class _KeptSublayer(TypedDict):
    layer: str
    module: str
    kind: str
    of: int
    kept: list[int]


class KeptSublayer(_KeptSublayer, total=False):
    """What is left of one sublayer.

    Attributes:
        layer: path of the layer in the base model.
        module: path of the linear layer that reads the blocks. Of experts: their router.
        kind: head (a key/value group with its query heads), neuron or expert.
        of: number of blocks in the base model. Of the neurons of experts: those of all experts, one after the other.
        kept: their numbers in the base model, ascending.
        scale: factors that cuts have multiplied the kept blocks with. Absent where all are 1.
    """

    scale: list[float]


class Facts(TypedDict):
    """The content of the file.

    Attributes:
        version: of this format.
        versions: of apt_ds, torch, transformers and deepspeed.
        export_format: stock, adaptive or padded.
        bits: of the projections. 16 where they are not quantized.
        base: the base model.
        sublayers: what is left of each sublayer.
        hidden: numbers of the kept hidden dimensions in the base model, ascending.
        ranks: final rank of each adapter, by the path of its linear layer. Adapters are merged into the weights.
        fingerprints: of the data, by name.
    """

    version: int
    versions: dict[str, str]
    export_format: str
    bits: int
    base: BaseFacts
    sublayers: list[KeptSublayer]
    hidden: list[int]
    ranks: dict[str, int]
    fingerprints: dict[str, str]


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {"apt_ds": apt_ds.__version__} | {name: version(name) for name in ("torch", "transformers", "deepspeed")}


def public_name(name: str) -> str:
    """A model's name without the folders of this machine. Names of a hub have one slash."""
    local = os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") > 1
    return Path(name).name if local else name


def kept_sublayers(whole: Anatomy, kept_ids: np.ndarray, scale: np.ndarray) -> tuple[list[KeptSublayer], list[int]]:
    """What is left of each sublayer, and the hidden dimensions that are left.

    Args:
        whole: the blocks of the base model.
        kept_ids: int64 [kept blocks], their numbers in the base model.
        scale: float64 [kept blocks], their factors.
    """
    sublayers: list[KeptSublayer] = []
    hidden: list[int] = []
    for site, span in block_slices(whole.sizes):
        own = (span.start <= kept_ids) & (kept_ids < span.stop)
        kept = (kept_ids[own] - span.start).tolist()
        if site == HIDDEN:
            hidden = kept
            continue
        sublayer = whole.sites[site]
        layer = next((path for path in whole.layers if sublayer.consumer.startswith(f"{path}.")), "")
        count = whole.sizes.counts[site]
        entry = KeptSublayer(layer=layer, module=sublayer.consumer, kind=sublayer.kind, of=count, kept=kept)
        if (scale[own] != 1).any():
            entry["scale"] = scale[own].tolist()
        sublayers.append(entry)
    return sublayers, hidden


def keep_of(facts: Facts, whole: Anatomy) -> np.ndarray:
    """The blocks of a base model that are left, bool [blocks].

    Args:
        facts: of the written model.
        whole: the blocks of the base model.

    Raises:
        UserError: the base model has other blocks.
    """
    keep = np.zeros(whole.sizes.total(), dtype=bool)
    stated = [(entry["module"], entry["of"]) for entry in facts["sublayers"]]
    sites = [(site.consumer, count) for site, count in zip(whole.sites, whole.sizes.counts, strict=True)]
    if stated != sites or facts["base"]["hidden"] != whole.sizes.hidden:
        raise UserError(f"{FILE} is of a base model with other sizes; give {facts['base']['name']!r}")
    kept = [*(entry["kept"] for entry in facts["sublayers"]), facts["hidden"]]
    for (_, span), numbers in zip(block_slices(whole.sizes), kept, strict=True):
        keep[span.start + np.array(numbers, dtype=np.int64)] = True
    return keep


def write_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Write the file. A sublayer has one line."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n".join(f"    {json.dumps(entry)}" for entry in value)
            lines.append(f"  {json.dumps(name)}: [\n{entries}\n  ]")
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(value)}")
    (folder / FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf8")


def read_facts(folder: str | Path) -> Facts:
    """Read the file of a written model.

    Raises:
        UserError: there is none, it is broken, or a later version of the package wrote it.
    """
    path = Path(folder) / FILE
    try:
        facts = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a folder that a run has written") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("version"), int):
        raise UserError(f"{path} has no field 'version': apt_ds did not write it")
    if facts["version"] > VERSION:
        raise UserError(f"{path} has version {facts['version']}, this one reads up to {VERSION}: install a later one")
    for name, kind in FIELDS.items():
        if not isinstance(facts.get(name), kind):
            raise UserError(f"{path} has no valid field {name!r}")
    return cast(Facts, facts)
