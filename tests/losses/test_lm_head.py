"""The LM head on labelled tokens only, against the loss of all logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.batching import collate
from apt_ds.losses import cross_entropy
from apt_ds.losses.lm_head import check_transform, logits_of, pad_positions
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.models import architectures
from apt_ds.models.architectures import granite, llama
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.logit_transform import LogitTransform
from tests.support import tiny, tiny_families


def expected(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize(("count", "padded"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_positions_are_padded_with_the_first_token(count: int, padded: int) -> None:
    positions = pad_positions(torch.arange(1, count + 1))
    assert positions.tolist() == [*range(1, count + 1), *[0] * (padded - count)]


def test_selected_logits_are_those_of_all_tokens() -> None:
    model, ids = tiny.model().eval(), torch.tensor([[5, 6, 7], [8, 9, 4]])
    positions = torch.tensor([4, 1, 0])
    with torch.no_grad():
        selected = logits_of(model, {"input_ids": ids}, positions, 2)
        whole = model(input_ids=ids).logits.flatten(0, 1)
    torch.testing.assert_close(selected, whole[[4, 1]])
    # the hook is off again
    assert model(input_ids=ids).logits.shape[:2] == (2, 3)


ROWS = {
    "gqa": [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}],
    "t5": [{"input_ids": [5, 6, 7], "labels": [7, 8, 9]}, {"input_ids": [9], "labels": [4]}],
}
MODELS = {"gqa": tiny.model, "t5": tiny.small, "granite": tiny_families.model}
LABELS = {"gqa": [7, 8, 4], "t5": [7, 8, 9, 4]}
ROWS["granite"], LABELS["granite"] = ROWS["gqa"], LABELS["gqa"]


@pytest.mark.parametrize("kind", ["gqa", "t5", "granite"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_has_the_loss_of_its_logits(kind: str, frozen: bool) -> None:
    """With a head that is trained, whose gradient needs the logits, too; what a row adds does not depend on others."""
    model, rows, task_loss = MODELS[kind](kind), ROWS[kind], TASK_LOSSES[tiny.TASKS.get(kind, LANGUAGE_MODEL)]
    model.eval().get_output_embeddings().weight.requires_grad_(not frozen)
    batch = collate(rows, 0)
    body = next(p for name, p in model.named_parameters() if name.endswith(("o_proj.weight", "wo.weight")))
    loss = task_loss.summed_loss(model, batch)
    (logits,) = task_loss.logits(model, batch)
    torchs = expected(logits, torch.tensor(LABELS[kind]))
    torch.testing.assert_close(loss, torchs)
    torch.testing.assert_close(*(torch.autograd.grad(value, body)[0] for value in (loss, torchs)))
    alone = sum(task_loss.summed_loss(model, collate([row], 0)) for row in rows)
    torch.testing.assert_close(loss, alone)
    # the head is the model's own again
    assert "forward" not in vars(model.get_output_embeddings())


CAUSAL = TASK_LOSSES[LANGUAGE_MODEL]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gqa", "t5", "granite"])
def test_every_family_is_as_its_spec_says(kind: str, dtype: torch.dtype) -> None:
    model = MODELS[kind](kind).to(dtype).eval()
    assert TASK_LOSSES[tiny.TASKS.get(kind, LANGUAGE_MODEL)].check(model, torch.device("cpu"))
    assert not model.get_output_embeddings()._forward_hooks


class UnknownScaleConfig(GraniteConfig):
    model_type = "unknown_scale"


class UnknownScale(GraniteForCausalLM):
    config_class = UnknownScaleConfig


@pytest.mark.parametrize("spec", [None, replace(llama.ARCHITECTURE, model_type="unknown_scale")])
def test_logits_that_are_not_as_the_spec_says_are_the_models_own(
    spec: Architecture | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family without a spec, and one whose spec keeps quiet about its scale."""
    monkeypatch.setattr(architectures, "REGISTRY", {} if spec is None else {"unknown_scale": spec})
    model = UnknownScale(UnknownScaleConfig.from_dict(tiny_families.granite().to_dict())).eval().requires_grad_(False)
    batch = collate(ROWS["gqa"], 0)
    (logits,) = CAUSAL.logits(model, batch)
    torchs = expected(logits, torch.tensor(LABELS["gqa"]))
    assert not CAUSAL.check(model, torch.device("cpu"))
    monkeypatch.setattr(cross_entropy, "of_hidden", None)
    torch.testing.assert_close(CAUSAL.summed_loss(model, batch), torchs)


def test_a_probe_finds_a_wrong_scale_and_a_missing_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"input_ids": torch.tensor([[5, 6]])}
    for wrong in (LogitTransform(), LogitTransform(1 / 8, 30.0), LogitTransform(1 / 7.9)):
        model = tiny_families.model("granite")
        assert check_transform(model, inputs)
        spec = replace(granite.ARCHITECTURE, logits=lambda config, wrong=wrong: wrong)
        monkeypatch.setitem(architectures.REGISTRY, "granite", spec)
        assert not check_transform(model, inputs)
        monkeypatch.undo()
        # once unknown, always unknown
        assert not check_transform(model, inputs)
