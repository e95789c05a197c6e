"""Where the adapters of a PEFT folder go in a model, and what they bring to the options of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models import initial_adapters
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.base import Base
from apt_ds.models.peft_folder import PeftFolder
from tests.models.test_peft_folder import save
from tests.support import tiny, tiny_families


def folder_of(path: str, out: int, whole: dict[str, torch.Tensor] | None = None) -> PeftFolder:
    """One adapter of rank 2 with the factor 3."""
    return PeftFolder({path: (torch.randn(2, 32), torch.randn(out, 2), 3.0)}, whole or {})


def test_the_scale_is_folded_into_b() -> None:
    folder = folder_of("model.layers.0.self_attn.q_proj", 32)
    anatomy = anatomy_of(tiny.config())
    a, b = initial_adapters.initial_of(folder, anatomy, {}, "F").pairs["model.layers.0.self_attn.q_proj"]
    old_a, old_b, _ = folder.pairs["model.layers.0.self_attn.q_proj"]
    assert torch.equal(a, old_a) and torch.equal(2.0 * b, 3.0 * old_b)


def test_a_joined_layer_gives_each_part_its_rows_and_ranks() -> None:
    config = tiny_families.config("phi3")
    anatomy = anatomy_of(config)
    joined = architecture_of(config).joined(anatomy)
    folder = folder_of("model.layers.1.self_attn.qkv_proj", 96)
    _, b, _ = folder.pairs["model.layers.1.self_attn.qkv_proj"]
    b[:32, 1], b[32:64] = 0.0, 0.0
    pairs = initial_adapters.initial_of(folder, anatomy, joined, "F").pairs
    layer = "model.layers.1.self_attn"
    assert {path: len(a) for path, (a, _) in pairs.items()} == {f"{layer}.q_proj": 1, f"{layer}.v_proj": 2}
    assert torch.equal(2.0 * pairs[f"{layer}.v_proj"][1], 3.0 * b[64:])
    assert initial_adapters.projections(anatomy, pairs) == ["q", "v"]
    b.zero_()
    untrained = initial_adapters.initial_of(folder, anatomy, joined, "F").pairs
    assert [len(a) for a, _ in untrained.values()] == [2, 2, 2]


def test_an_encoder_without_a_head_lacks_the_prefix_of_the_paths() -> None:
    anatomy = anatomy_of(tiny.small("bert-classes").config, "classification")
    folder = folder_of("encoder.layer.0.attention.self.query", 32, {"classifier.weight": torch.zeros(2, 32)})
    initial = initial_adapters.initial_of(folder, anatomy, {}, "F")
    assert list(initial.pairs) == ["bert.encoder.layer.0.attention.self.query"]
    assert list(initial.heads) == ["classifier.weight"]


def test_other_places_are_refused_in_one_line() -> None:
    anatomy = anatomy_of(tiny.config())
    with pytest.raises(UserError, match=r"has an adapter on lm_head, which is none of the model's projections q,k,v"):
        initial_adapters.initial_of(folder_of("lm_head", 32), anatomy, {}, "F")
    whole = {"model.embed_tokens.weight": torch.zeros(2, 2)}
    with pytest.raises(UserError, match=r"has trained model.embed_tokens whole \(modules_to_save\)"):
        initial_adapters.initial_of(folder_of("model.layers.0.self_attn.q_proj", 32, whole), anatomy, {}, "F")


def test_ranks_and_targets_come_from_the_folder_and_a_checkpoint_wins(tmp_path: Path) -> None:
    base = Base("unused", tiny.config(), tiny.tokenizer(), anatomy_of(tiny.config()))
    run = RunConfig(init_adapters=str(save(tmp_path)), rank=2)
    resolved, initial = initial_adapters.resolve(run, base, None)
    assert initial is not None and len(initial.pairs) == 4
    assert resolved.targets == ("q", "v") and resolved.adapter.rank == 4
    saved = {"init_adapters": "gone", "rank": 6, "adapter_targets": "q"}
    resumed, nothing = initial_adapters.resolve(run, base, saved)
    assert nothing is None and resumed.adapter.init_adapters == "gone"
    assert resumed.targets == ("q",) and resumed.adapter.rank == 6
    other, nothing = initial_adapters.resolve(run, base, {"init_adapters": "", "rank": 6, "adapter_targets": "q"})
    assert nothing is None and other.adapter.init_adapters == "" and other.adapter.rank == 2
