"""Self-distillation (section 7): what is drawn, compared and learnt, on plain models."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from apt_ds.config.resolve import resolve
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, TASKS
from apt_ds.data.batching import Batch, collate
from apt_ds.data.tokenized import Row
from apt_ds.losses import distillation
from apt_ds.losses.task_losses import OBJECTIVES, Logits
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import adapter, task_heads
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime.zero import EngineState
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT

KINDS = ("bert-classes", "roberta-answers", "t5-gated")
CPU = torch.device("cpu")


def rows(kind: str) -> list[Row]:
    """Four rows of different lengths."""
    generator = torch.Generator().manual_seed(5)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 200, (length,), generator=generator).tolist()

    more = {
        CLASSIFICATION: [{"targets": [i % 2]} for i in range(4)],
        ANSWERS: [{"targets": [1, 2 + i]} for i in range(4)],
        GENERATION: [{"labels": draw(length)} for length in (3, 6, 4, 2)],
    }[tiny.TASKS[kind]]
    return [{"input_ids": draw(length)} | own for length, own in zip((9, 5, 12, 7), more, strict=True)]


@dataclass
class Class:
    """A student in the middle of its lessons: masks half down, adapters away from where the teacher has them."""

    model: PreTrainedModel
    anatomy: Anatomy
    masks: Masks
    training_loss: TrainingLoss


def started(kind: str, *flags: str) -> Class:
    model = tiny.small(kind)
    anatomy = anatomy_of(model.config, tiny.TASKS[kind])
    architecture_of(model.config).prepare(model, anatomy)
    adapter.attach(model, anatomy, ("q", "v", "up"), rank=3, seed=1)
    task_heads.attach(model, anatomy)
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--pruning", "gradual", "--distill", *flags]
    run = resolve(words)
    training_loss = TrainingLoss(run, tiny.TASKS[kind], anatomy, 10, CPU)
    anatomy = training_loss.prepare(model, anatomy)
    masks = Masks(anatomy)
    masks.install(model.train())
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    training_loss.install_hooks(model)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    model.get_submodule("transform").lora_B.data.normal_(0, 0.1)
    values = np.ones(anatomy.sizes.total())
    values[dict(block_slices(anatomy.sizes))[HIDDEN]][:4] = 0.0
    values[::5] = 0.5
    masks.set(values)
    return Class(model, anatomy, masks, training_loss)


def said(model: nn.Module, kind: str, batch: Batch) -> Logits:
    with torch.no_grad():
        return OBJECTIVES[tiny.TASKS[kind]].logits(model.eval(), batch)


def test_a_layer_is_drawn_from_each_quarter_of_a_stack() -> None:
    stacks = [list(range(12)), list(range(12, 24))]
    drawn = np.array([distillation.drawn(stacks, step, seed=0) for step in range(200)])
    for column in range(8):
        assert sorted(set(drawn[:, column])) == list(range(3 * column, 3 * column + 3))
    assert distillation.drawn(stacks, 7, 0) == distillation.drawn(stacks, 7, 0) != distillation.drawn(stacks, 7, 1)
    assert distillation.drawn([[0, 1]], 3, 0) == [0, 1]


def test_layers_are_compared_on_kept_dimensions_and_counted_tokens() -> None:
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    valid, kept = torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.tensor([1.0, 0.0, 1.0, 0.5])
    squares = (student - teacher).square()
    by_hand = sum((squares[i, j] * kept).sum() / 2.5 for i, j in ((0, 0), (0, 1), (1, 0)))
    assert distillation.layer_distance(student, teacher, valid, kept) == pytest.approx(by_hand.item(), rel=1e-5)
    plain = squares.mean(-1)[valid.bool()].sum().item()
    assert distillation.layer_distance(student, teacher, valid, None) == pytest.approx(plain, rel=1e-5)


def test_predictions_are_compared_by_the_divergence_from_the_teacher() -> None:
    own, other = torch.randn(3, 5), torch.randn(3, 5)
    p, q = other.softmax(-1), own.softmax(-1)
    by_hand = (p * (p.log() - q.log())).sum().item()
    assert distillation.prediction_distance((own,), (other,)) == pytest.approx(by_hand, rel=1e-4)
    assert distillation.prediction_distance((own, own), (other, own)) == pytest.approx(by_hand / 2, rel=1e-4)
    assert distillation.prediction_distance((own[:, :1],), (other[:, :1],)) == pytest.approx(
        (own[:, 0] - other[:, 0]).square().sum().item()
    )


def test_the_nearest_layer_is_of_the_same_stack() -> None:
    table = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 5.0, 4.0]])
    assert distillation.nearest(table, [0, 3], [[0, 1], [2, 3]]) == {0: 1, 3: 3}


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_the_unmasked_model_at_its_snapshot(kind: str) -> None:
    made, batch = started(kind), collate(rows(kind), 0)
    before = said(made.model, kind, batch)
    with made.training_loss.teacher.as_teacher(made.model, made.masks):
        taught = made.training_loss.objective.logits(made.model, batch)
    after = said(made.model, kind, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    expected = copy.deepcopy(made.model)
    made.masks.remove()
    plain = copy.deepcopy(made.model)
    for name, parameter in plain.named_parameters():
        if name in made.training_loss.teacher.snapshot:
            parameter.data.copy_(made.training_loss.teacher.snapshot[name])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(taught, said(plain, kind, batch), strict=True))
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(taught, said(expected, kind, batch), strict=True))


def lesson_of(made: Class, kind: str, parts: list[slice], step: int) -> tuple[float, dict[str, Tensor], Tensor]:
    """(loss, gradients, distances) of the four rows in micro-batches."""
    made.training_loss.begin(step, rows(kind))
    total = 0.0
    if made.training_loss.previews:
        made.training_loss.preview(made.model, (collate(rows(kind)[part], 0) for part in parts[1:]), made.masks)
    for part in parts:
        loss, _ = made.training_loss.micro_batch_loss(made.model, collate(rows(kind)[part], 0), made.masks)
        loss.backward()
        total += loss.item()
    gradients = {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}
    made.model.zero_grad()
    return total, gradients, made.training_loss.distances.clone()


@pytest.mark.parametrize("match", ["step", "previous"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_split_changes_no_lesson(kind: str, match: str) -> None:
    made = started(kind, "--layer_match", match)
    start = dict(made.training_loss.match)
    whole = lesson_of(made, kind, [slice(0, 4)], 6)
    made.training_loss.observe(made.training_loss.pending())
    matched = {layer: made.training_loss.match[layer] for layer in made.training_loss.measured}
    made.training_loss.match = start
    split = lesson_of(made, kind, [slice(0, 1), slice(1, 3), slice(3, 4)], 6)
    assert made.training_loss.mu == 0.6
    made.training_loss.observe(made.training_loss.pending())
    assert {layer: made.training_loss.match[layer] for layer in made.training_loss.measured} == matched
    assert whole[0] == pytest.approx(split[0], rel=1e-5)
    assert torch.allclose(whole[2], split[2], rtol=1e-4)
    assert whole[1].keys() == split[1].keys()
    assert {"transform.lora_A", "transform.lora_B"} < whole[1].keys()
    for name, gradient in whole[1].items():
        assert torch.allclose(gradient, split[1][name], rtol=1e-3, atol=1e-6), name


def by_hand(made: Class, kind: str) -> tuple[float, float]:
    """(L_pred, L_layer) of the four rows from their definition: every teacher layer meets its nearest student layer."""
    training_loss, batch = made.training_loss, collate(rows(kind), 0)
    taught = training_loss.teach(made.model, batch, made.masks)
    with torch.no_grad(), training_loss.watcher.seeing(training_loss.match) as states:
        logits = training_loss.objective.logits(made.model, batch)
    divergences = []
    for own, other in zip(logits, taught.logits, strict=True):
        p, q = other.softmax(-1), own.softmax(-1)
        divergences.append((p * (p.clamp(min=1e-30) / q.clamp(min=1e-30)).log()).sum().item() / training_loss.weight)
    whole = made.masks.values[dict(block_slices(made.anatomy.sizes))[HIDDEN]] == 1.0
    assert 0 < whole.sum() < len(whole)
    counted = [batch.attention_mask.bool()]
    if batch.labels is not None:
        counted.append(batch.labels != -100)
    layers = 0.0
    for layer in training_loss.layers:
        number = training_loss.place[layer]
        distances = []
        for own in training_loss.stacks[number]:
            shown = made.model.get_submodule("transform")(states[own])
            squares = (shown - taught.states[layer])[..., whole].square().mean(-1)
            distances.append(squares[counted[number]].mean().item())
        layers += min(distances)
    return float(np.mean(divergences)), layers


@pytest.mark.parametrize(
    ("kind", "task", "weight"),
    [
        ("bert-classes", "sst2", 1.0),
        ("t5-gated", "rte", 1.0),
        ("t5-gated", "cnndm", 0.1),
        ("t5-gated", "text", 0.1),
        ("roberta-answers", "squad_v2", 0.1),
    ],
)
def test_the_task_weighs_the_predictions(kind: str, task: str, weight: float) -> None:
    """GLUE: L_pred + 0.9 L_layer, in words too. Other tasks: 0.1 L_pred + 0.9 L_layer."""
    made = started(kind, "--task", task)
    made.training_loss.phase = 1  # mu is 1
    loss, _, _ = lesson_of(made, kind, [slice(0, 4)], 1)
    predictions, layers = by_hand(made, kind)
    assert min(predictions, layers) > 1e-3
    assert loss == pytest.approx(weight * predictions + 0.9 * layers, rel=1e-4)


def test_every_glue_task_weighs_its_predictions_by_one() -> None:
    heavy = {task for task in TASKS if distillation.prediction_weight(task) == 1.0}
    assert heavy == {"sst2", "mnli", "qnli", "qqp", "mrpc", "cola", "rte", "stsb"}
    assert {distillation.prediction_weight(task) for task in set(TASKS) - heavy} == {0.1}


def test_dimensions_are_compared_while_their_mask_is_one() -> None:
    assert distillation.comparable(None) is None
    assert distillation.comparable(torch.tensor([1.0, 0.5, 0.0, 1.0])).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert distillation.comparable(torch.tensor([0.5, 0.2, 0.5, 0.0])).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_what_was_measured_beforehand_is_what_is_compared() -> None:
    """With dropout the student drops the same units in both of its passes, and other units in the next step."""
    kind, seen = "bert-classes", []
    made = started(kind)
    for module in made.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    made.model.get_submodule(made.anatomy.layers[-1]).register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    for step in (6, 7):
        lesson_of(made, kind, [slice(0, 2), slice(2, 4)], step)
    # a step: teacher and student on the second part beforehand, both on the first part, the student on the second
    assert len(seen) == 10
    assert torch.equal(seen[1], seen[4]) and torch.equal(seen[6], seen[9])
    assert not torch.allclose(seen[1], seen[6], atol=1e-3) and torch.equal(seen[0], seen[5])
    assert not torch.allclose(seen[3], seen[8], atol=1e-3)


@pytest.mark.parametrize("match", ["step", "previous"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_learns_nothing_from_it(kind: str, match: str) -> None:
    made = started(kind, "--layer_match", match)
    made.masks.set(np.ones(made.anatomy.sizes.total()))
    made.training_loss.teacher.learn(made.model)
    made.model.get_submodule("transform").lora_B.data.zero_()
    made.training_loss.phase = 1  # mu is 1
    loss, gradients, _ = lesson_of(made, kind, [slice(0, 4)], 1)
    assert abs(loss) < 1e-5 and max(g.abs().max() for g in gradients.values()) < 1e-4
    made.training_loss.observe(made.training_loss.pending())
    assert {layer: made.training_loss.match[layer] for layer in made.training_loss.measured} == {
        layer: layer for layer in made.training_loss.measured
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_snapshot_follows_cuts_and_growth(kind: str) -> None:
    made, batch = started(kind), collate(rows(kind), 0)
    values = np.ones(made.anatomy.sizes.total(), dtype=bool)
    for _, span in block_slices(made.anatomy.sizes):
        values[span.start : span.stop : 4] = False
    made.masks.remove()
    # an unpruned teacher whose blocks go with the student's: masks on the old shapes tell what to expect
    mirror = copy.deepcopy(made.model)
    for name, parameter in mirror.named_parameters():
        if name in made.training_loss.teacher.snapshot:
            parameter.data.copy_(made.training_loss.teacher.snapshot[name])
    masks = Masks(made.anatomy)
    masks.install(mirror)
    masks.set(values.astype(float))
    expected = said(mirror, kind, batch)
    made.training_loss.remove_hooks()
    state = EngineState({n: {} for n, p in made.model.named_parameters() if p.requires_grad}, 0.0)
    grown = {path: 6 for path, _ in list(adapter.adapters(made.model))[::2]}
    with made.training_loss.teacher_follows_surgery(state):
        smaller = apply_plan(made.model, made.anatomy, Plan(values, grown), state, torch.Generator())
    fresh = Masks(smaller)
    with made.training_loss.teacher.as_teacher(made.model, fresh):
        found = made.training_loss.objective.logits(made.model, batch)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert not any(state.tensors.values())
    width = smaller.sizes.hidden
    assert made.model.get_submodule("transform")(torch.zeros(2, width)).shape == (2, width)


def test_the_teacher_learns_unless_the_student_got_worse() -> None:
    made = started("bert-classes")
    assert made.training_loss.follow(50.0, made.model)
    first = made.training_loss.teacher.snapshot["classifier.weight"]
    made.model.classifier.weight.data += 1.0
    assert not made.training_loss.follow(49.0, made.model)
    assert torch.equal(made.training_loss.teacher.snapshot["classifier.weight"], first)
    assert not made.training_loss.follow(float("nan"), made.model)
    assert made.training_loss.follow(50.0, made.model)
    assert torch.equal(made.training_loss.teacher.snapshot["classifier.weight"], first + 1.0)


def test_the_first_adjustment_must_not_be_worse_than_the_start() -> None:
    made = started("bert-classes")
    made.training_loss.start({"score": 50.0, "held_out_loss": 3.0})
    assert not made.training_loss.follow(49.0, made.model) and made.training_loss.follow(50.0, made.model)
    made.training_loss.start({"held_out_loss": 3.0})
    assert not made.training_loss.follow(-3.1, made.model) and made.training_loss.follow(-2.9, made.model)
    made.training_loss.start({"score": float("nan"), "held_out_loss": 3.0})
    assert made.training_loss.follow(0.0, made.model)


@pytest.mark.slow
def test_the_teacher_costs_a_tenth_more_memory_at_most() -> None:
    """A model as large as MiniLM, 32 sequences of 128 tokens."""
    program = [sys.executable, "-m", "tests.support.step_memory"]
    environment = multiprocess.environment()
    peaks = {}
    for mode in ("student", "distilled"):
        done = subprocess.run(
            [*program, mode, "32", "128"], env=environment, capture_output=True, text=True, check=True
        )
        peaks[mode] = int(done.stdout.split()[-1])
    print(peaks, peaks["distilled"] / peaks["student"])
    assert peaks["student"] < peaks["distilled"] < 1.10 * peaks["student"]
