"""What a run trains: adapters and the layers of the task's answer, or every weight."""

from __future__ import annotations

from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.trainables import attach_trainables
from tests.support import tiny

RUN = RunConfig(task="sst2", adapter_targets="q,v", seed=3)


def test_adapters_and_the_answer_are_trained() -> None:
    model = tiny.small("bert-classes")
    anatomy = anatomy_of(model.config, tiny.TASKS["bert-classes"])
    attach_trainables(model, anatomy, RUN, 5, all_weights=False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    answer = {f"{path}.{part}" for path in anatomy.task_heads for part in ("weight", "bias")}
    assert {name for name in trained if ".lora_" not in name} == answer
    assert set(adapter.ranks(model)) == {path for name in ("q", "v") for path in anatomy.targets[name]}
    assert set(adapter.ranks(model).values()) == {5}


def test_a_run_that_trains_all_weights_has_no_adapters() -> None:
    model = tiny.small("bert-classes").requires_grad_(False)
    attach_trainables(model, anatomy_of(model.config, tiny.TASKS["bert-classes"]), RUN, 5, all_weights=True)
    assert all(p.requires_grad for p in model.parameters()) and not adapter.ranks(model)
