"""Writes unmerged adapters as a PEFT folder, for the base that they were trained on.

W + s W_B W_A is what LoRA computes with alpha = s r. At an export the masks of METHOD.md section 1 are 0 or 1, and the
cut has removed what they mask, so that nothing of them is left to fold.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from apt_ds.models import peft_format
from apt_ds.models.adapter import SCALE, adapters
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.facts import public_name
from apt_ds.models.origin import is_repository
from apt_ds.models.peft_format import PREFIX, BaseNote
from apt_ds.runtime import collectives, zero

Pairs = dict[str, tuple[Tensor, Tensor]]  # path to W_A [r, in] and W_B [out, r]


def write_adapters(
    model: PreTrainedModel, anatomy: Anatomy, joined: Mapping[str, tuple[str, ...]], note: BaseNote, folder: Path
) -> None:
    """Write adapters and the layers that are trained whole to `folder`, all or nothing. Collective.

    Args:
        model: the trained model. It has no engine.
        anatomy: its blocks.
        joined: weights of the base that have several names in the model (`Written.joined`).
        note: names the base.
        folder: the folder to write. An existing one is replaced at the end.

    Raises:
        OSError: the folder cannot be written.
    """
    pairs = join(model, _pairs(model), joined)
    saved = heads_to_save(model, anatomy)
    tensors = _weights_below(model, saved)
    for path, (a, b) in pairs.items():
        tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    ranks = {path: len(a) for path, (a, _) in pairs.items()}
    config = peft_config(ranks, target_modules(model, ranks), saved, note)
    collectives.on_main(lambda: _write(folder, config, tensors, note))


@torch.no_grad()
def _pairs(model: nn.Module) -> Pairs:
    """Copies of all adapters' weights on the CPU of the first rank. Empty tensors elsewhere. Collective."""
    pairs: Pairs = {}
    for path, layer in adapters(model):
        with zero.gathered([layer.lora_A, layer.lora_B]):
            pairs[path] = _copy(layer.lora_A), _copy(layer.lora_B)
    return pairs


@torch.no_grad()
def _weights_below(model: nn.Module, paths: list[str]) -> dict[str, Tensor]:
    """Copies of all parameters of modules, as `_pairs` makes them. Collective."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        module = model.get_submodule(path)
        with zero.gathered(list(module.parameters())):
            tensors |= {name: _copy(value) for name, value in module.named_parameters(prefix=path)}
    return tensors


def _copy(parameter: Tensor) -> Tensor:
    value = parameter.detach()
    return value.to("cpu", copy=True).contiguous() if collectives.is_main() else value.new_empty(value.shape)


def join(model: nn.Module, pairs: Pairs, joined: Mapping[str, tuple[str, ...]]) -> Pairs:
    """Adapters by the modules of the base, where several layers of the model are one.

    The parts' W_A are put below each other. W_B has the parts' W_B as blocks, and zeros elsewhere.
    """
    pairs = dict(pairs)
    for whole, names in joined.items():
        parts = [name.removesuffix(".weight") for name in names]
        own = {part: pairs.pop(part) for part in parts if part in pairs}
        if not own:
            continue
        a = torch.cat([a for a, _ in own.values()])
        rows = {part: zero.full_shape(model.get_submodule(part).get_parameter("weight"))[0] for part in parts}
        b, row, column = a.new_zeros(sum(rows.values()), len(a)), 0, 0
        for part in parts:
            if part in own:
                value = own[part][1]
                b[row : row + rows[part], column : column + value.shape[1]] = value
                column += value.shape[1]
            row += rows[part]
        pairs[whole.removesuffix(".weight")] = a, b
    return pairs


def heads_to_save(model: PreTrainedModel, anatomy: Anatomy) -> list[str]:
    """The modules of the task's answer, which PEFT replaces as a whole.

    PEFT replaces a classifier of several layers by the name of the classifier.
    """
    prefix = model.base_model_prefix
    tops = [path if path.startswith(f"{prefix}.") else path.partition(".")[0] for path in anatomy.task_heads]
    return list(dict.fromkeys(tops))


def target_modules(model: nn.Module, paths: Mapping[str, int]) -> list[str]:
    """What names exactly these modules: the ends of their paths, or the whole paths where an end names others too."""
    ends = {path.rpartition(".")[2] for path in paths}
    others = {path.rpartition(".")[2] for path, _ in model.named_modules() if path not in paths}
    return sorted(paths) if ends & others else sorted(ends)


def peft_config(ranks: Mapping[str, int], targets: list[str], saved: list[str], note: BaseNote) -> dict[str, Any]:
    """The content of adapter_config.json. ranks: path to rank.

    `r` is the largest rank, as consumers allocate by it. alpha / r is the scale s for every adapter.
    """
    highest = max(ranks.values(), default=1)
    lower = {path: rank for path, rank in ranks.items() if rank != highest}
    return {
        "peft_type": "LORA",
        "task_type": peft_format.TASK_TYPES[note.task],
        "base_model_name_or_path": note.base,
        "r": highest,
        "lora_alpha": _alpha(highest),
        "rank_pattern": lower,
        "alpha_pattern": {path: _alpha(rank) for path, rank in lower.items()},
        "target_modules": targets,
        "modules_to_save": saved or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _alpha(rank: int) -> int:
    return round(SCALE * rank)


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], note: BaseNote) -> None:
    partial = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        named = {f"{PREFIX}{name}": value for name, value in tensors.items()}
        save_file(named, partial / peft_format.WEIGHTS, metadata={"format": "pt"})
        for name, content in ((peft_format.CONFIG, config), (peft_format.OWN, note.to_json())):
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
        (partial / "README.md").write_text(card(note, config), encoding="utf8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def card(note: BaseNote, config: dict[str, Any]) -> str:
    """The README.md of the folder."""
    ranks = [config["r"], *config["rank_pattern"].values()]
    # a card may go to a hub, which knows no folders of this machine
    base = f"base_model: {note.base}\n" if is_repository(note.base) else ""
    return f"""---
{base}library_name: peft
tags:
- lora
- apt_ds
---

# LoRA adapters

`apt_ds` trained these adapters. They are not merged. Ranks are {min(ranks)} to {max(ranks)}.

- Base: `{public_name(note.base)}`
- Fingerprint of the base's weights: `{note.fingerprint}`

```python
import apt_ds

model = apt_ds.load_adapters("path/of/this/folder")  # refuses another base
```

PEFT loads them too, and does not check the base:
`PeftModel.from_pretrained(model, "path/of/this/folder")`, where `model` is the base.
"""
