"""Folders of every family in every form, cut from random models whose head sizes real consumers have."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from apt_ds.analysis.consumers.entry import Case, expected_of
from apt_ds.analysis.consumers.table import FORMS
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.models.export import write
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.support import tiny, tiny_experts, tiny_families

# rows and groups of columns are whole blocks of 64
LARGE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
FAMILIES = (*tiny_families.FAMILIES, *tiny_experts.FAMILIES)
TEXT = " ".join(tiny.WORDS[5:11])


def model_of(family: str) -> PreTrainedModel:
    """A random model of a family, of real head sizes."""
    if family in tiny_experts.FAMILIES:
        model = tiny_experts.model(family, **{k: v for k, v in LARGE.items() if k != "intermediate_size"})
    else:
        model = tiny_families.model(family, **LARGE, head_dim=32)
    architecture_of(model.config).prepare(model, anatomy_of(model.config))
    return model.eval()


def keep_of(anatomy: Anatomy, form: str) -> np.ndarray:
    """All blocks but one group of heads and 64 neurons of every layer. Layers differ, unless the form is uniform."""
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    experts = {mixture.neuron_site: mixture for mixture in anatomy.experts}
    for site, span in list(block_slices(anatomy.sizes))[:-1]:
        kind, more = anatomy.kind(site), form != "uniform" and site > 1
        if site in experts:
            count, neurons = experts[site].shape(anatomy.sizes)
            table = np.ones((count, neurons), dtype=bool)
            table[:, : 16 if more else 8] = False
            keep[span] = table.ravel()
        elif kind != "expert":
            cut = (2 if more else 1) if kind == "head" else (128 if more else 64)
            keep[span.start : span.start + min(cut, (span.stop - span.start) // 2)] = False
    return keep


def made(family: str, form: str, place: Path) -> Case | None:
    """A cut model of a family, written in a form. None: this version does not write the form."""
    options = {}
    if form == "padded":
        if "form" not in inspect.signature(write.export).parameters:
            return None
        options = {"form": "padded"}
    model = model_of(family)
    anatomy, base = anatomy_of(model.config), copy.deepcopy(model.config)
    keep = keep_of(anatomy, form)
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    folder = place / f"{family}-{form}"
    write.export(model, smaller, base, model.generation_config, tiny.tokenizer(), folder, **options)
    return Case(folder, expected_of(model, tiny.tokenizer(), TEXT))


def all_cases(place: Path, families: tuple[str, ...] = FAMILIES) -> dict[tuple[str, str], Case]:
    """(form, family) to the written model."""
    cases = {(form, family): made(family, form, place) for form in FORMS for family in families}
    return {key: case for key, case in cases.items() if case is not None}
