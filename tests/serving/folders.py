"""Folders of every family in every form, cut from random models whose head sizes real consumers have."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from apt_ds.analysis.consumers.entry import Case, expected_of
from apt_ds.analysis.consumers.table import FORMS
from apt_ds.config.errors import UserError
from apt_ds.models import builtin_models
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import Anatomy, block_slices, kept_sizes
from apt_ds.models.export import write
from apt_ds.models.export.configs import writable_sizes
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.support import tiny, tiny_experts, tiny_families

# rows and groups of columns are whole blocks of 64
LARGE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
# the order of attention layers that Gemma 3 has, which llama.cpp assumes
GEMMA_3 = {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
FAMILIES = (*tiny_families.FAMILIES, *tiny_experts.FAMILIES)
TEXT = "Name three colours of the sky"


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer, which all consumers know. A tokenizer of whole words where it is not installed."""
    try:
        return AutoTokenizer.from_pretrained(builtin_models.source_of(builtin_models.SMOLLM2))
    except UserError:
        return tiny.tokenizer()


def model_of(family: str) -> PreTrainedModel:
    """A random model of a family, of real head sizes."""
    vocabulary = {"vocab_size": max(len(tokenizer()), tiny_families.COMMON["vocab_size"])}
    if family in tiny_experts.FAMILIES:
        sizes = {k: v for k, v in LARGE.items() if k != "intermediate_size"}
        model = tiny_experts.model(family, **sizes, **vocabulary)
    else:
        special: dict[str, object] = dict(vocabulary)
        if family == "gemma3":
            special |= GEMMA_3
        if family == "phi4":
            # A factor for each pair of the dimensions of a head that turn. Texts are short: transformers takes the long
            # factors for a long text, vLLM and llama.cpp for a server of long texts. That of llama.cpp has 256 tokens.
            rope = tiny_families.config(family).rope_parameters
            pairs = int(32 * rope["partial_rotary_factor"]) // 2
            rope |= {"short_factor": [1.5] * pairs, "long_factor": [2.0] * pairs}
            rope["original_max_position_embeddings"] = special["original_max_position_embeddings"] = 256
            special |= {"rope_parameters": rope, "max_position_embeddings": 512}
        model = tiny_families.model(family, **LARGE, head_dim=32, **special)
    architecture_of(model.config).prepare(model, anatomy_of(model.config))
    return model.eval()


# head blocks and hidden dimensions that a uniform cut removes, in the order in which families are asked
CUTS = ((1, 0), (2, 0), (2, 128))


def keep_of(anatomy: Anatomy, form: str, heads: int, hidden: int) -> np.ndarray:
    """All blocks but some heads, neurons and hidden dimensions. Layers differ unless the form is uniform."""
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    experts = {mixture.neuron_site: mixture for mixture in anatomy.experts}
    for site, span in block_slices(anatomy.sizes):
        kind, factor = anatomy.kind(site), 2 if form != "uniform" and site > 1 else 1
        if site in experts:
            table = np.ones(experts[site].shape(anatomy.sizes), dtype=bool)
            table[:, : 8 * factor] = False
            keep[span] = table.ravel()
        elif kind != "expert":
            removed = {"head": heads * factor, "neuron": 64 * factor, "hidden": hidden}[kind]
            keep[span.start : span.start + removed] = False
    return keep


def uniform_keep(config: PretrainedConfig, anatomy: Anatomy) -> np.ndarray:
    """The first of `CUTS` that the family can write as a stock class."""
    plans = [keep_of(anatomy, "uniform", *cut) for cut in CUTS]
    writable = writable_sizes(config)
    return next(keep for keep in plans if writable.holds(anatomy.with_sizes(kept_sizes(anatomy.sizes, keep))))


def make_case(family: str, form: str, place: Path, cut: tuple[int, int] | None = None) -> Case:
    """A cut model of a family, written in a form.

    Args:
        family: a row of `tiny_families` or `tiny_experts`.
        form: one of `FORMS`.
        place: where its folder goes.
        cut: head blocks and hidden dimensions that go. None: the first of `CUTS` that fits.
    """
    options = {"form": "padded"} if form == "padded" else {}
    model = model_of(family)
    anatomy, base = anatomy_of(model.config), copy.deepcopy(model.config)
    keep = keep_of(anatomy, form, *(cut or CUTS[0]))
    if form == "uniform" and cut is None:
        keep = uniform_keep(base, anatomy)
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    folder = place / f"{family}-{form}"
    write.export(model, smaller, base, model.generation_config, tokenizer(), folder, **options)
    return Case(folder, expected_of(model, tokenizer(), TEXT))


def all_cases(
    place: Path, families: tuple[str, ...] = FAMILIES, forms: tuple[str, ...] = FORMS
) -> dict[tuple[str, str], Case]:
    """(form, family) to the written model."""
    return {(form, family): make_case(family, form, place) for form in forms for family in families}
