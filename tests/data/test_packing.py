"""Packed rows hold the same examples, and nothing that is computed from them differs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_flash_attention_utils import _is_packed_sequence, prepare_fa_kwargs_from_position_ids

from apt_ds.analysis import batch_bounds
from apt_ds.analysis.fake_batches import Shape
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.data.batching import Batch, GlobalOrder, collate, round_up
from apt_ds.data.packing import grouped, over_slots, pack, padded_tokens, sharing
from apt_ds.data.tokenized import IGNORED, Row
from apt_ds.losses.task_losses import summed_loss
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.loading import find_base
from apt_ds.pruning.salience import Salience
from apt_ds.runtime import collectives
from apt_ds.training.datasets import read_data
from apt_ds.training.micro_batches import MicroBatches
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT
from tests.support.reference import reference_run

CPU = torch.device("cpu")
LIMIT = 32


def rows(lengths: list[int]) -> list[Row]:
    """Examples of these lengths, all but their first two tokens trained; the first label is a trap."""
    examples = []
    for i, length in enumerate(lengths):
        ids = tiny.ids(1, length, seed=i)[0].tolist()
        examples.append({"input_ids": ids, "labels": [ids[0], IGNORED, *ids[2:]][:length]})
    return examples


def test_every_example_is_in_one_row_and_rows_are_few() -> None:
    draw = random.Random(0)
    for _ in range(200):
        lengths = [draw.randint(1, LIMIT) for _ in range(draw.randint(1, 20))]
        groups = grouped(lengths, LIMIT)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        sums = [sum(lengths[i] for i in group) for group in groups]
        assert max(sums) <= LIMIT
        assert len(groups) * round_up(max(sums)) <= len(lengths) * round_up(max(lengths))
    assert len(grouped([8] * 12, LIMIT)) == 12  # nothing to gain: short rows are cheaper to attend in
    assert grouped([32, 8, 8, 8, 8], LIMIT) == [[0], [1, 2, 3, 4]]


@pytest.mark.parametrize("single", [False, True])
def test_a_step_is_packed_over_all_micro_batches(single: bool) -> None:
    draw = random.Random(1)
    fills = []
    for _ in range(100):
        slots, size = draw.randint(1, 8), draw.randint(1, 6)
        lengths = [draw.choice((draw.randint(1, LIMIT), draw.randint(1, 8))) for _ in range(slots * size)]
        packed = over_slots(lengths, slots, LIMIT, single)
        assert len(packed) == slots and sorted(i for slot in packed for row in slot for i in row) == list(
            range(len(lengths))
        )
        rows = [row for slot in packed for row in slot]
        assert all(rows) and len({len(slot) for slot in packed}) == 1
        assert single or max(sum(lengths[i] for i in row) for row in rows) <= LIMIT
        assert packed == over_slots(lengths, slots, LIMIT, single)
        parts = [lengths[k * size : (k + 1) * size] for k in range(slots)]
        neighbours = [padded_tokens(sharing(part, LIMIT, single), part) for part in parts]
        sizes = [padded_tokens(slot, lengths) for slot in packed]
        fills.append((sum(sizes), max(sizes), sum(neighbours), max(neighbours)))
    # not each step, but all steps together have less padding than neighbours in order, and smaller micro-batches
    total, largest, total_before, largest_before = map(sum, zip(*fills, strict=True))
    assert total < (1.01 if single else 0.95) * total_before and largest < 0.9 * largest_before


@pytest.mark.parametrize("more", [[], ["--packing"], ["--packing", "--attn_implementation", "varlen"]])
def test_the_estimate_of_memory_knows_the_batches(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes that it counts with are the largest of those that the run makes."""
    tiny.save_model(tmp_path / "model")
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--model_name_or_path", str(tmp_path / "model")]
    words += ["--data_path", str(tiny.save_data(tmp_path / "data.json")), "--eval_size", "4", "--max_seq_length", "64"]
    run = resolve([*words, "--per_device_train_batch_size", "4", "--max_steps", "7", "--seed", "3", *more])
    base = find_base(run.model.model_name_or_path)
    data, sizes = read_data(run, base), []
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        batches = MicroBatches(run, data.train, GlobalOrder(len(data.train), 8, run.optim.seed), 0, CPU)
        for batch in (batches.on_host(step, 0) for step in range(7)):
            sizes.append((*batch.input_ids.shape, 0, int((batch.labels[:, 1:] != IGNORED).sum())))
    assert batch_bounds.micro_batches(run, data, 2, base.task_type) == Shape(*map(max, *sizes))


def test_the_batch_tells_examples_apart() -> None:
    batch = pack(rows([7, 30, 5, 11]), 0, LIMIT)
    assert batch.input_ids.shape == (2, 32)
    assert batch.position_ids is not None and batch.to("cpu").position_ids is not None
    assert batch.position_ids[0].tolist() == [*range(30), 0, 1]
    assert batch.position_ids[1].tolist() == [*range(11), *range(7), *range(5), *range(9)]
    assert batch.starts is not None and batch.starts.dtype == torch.int32
    assert batch.starts.tolist() == [0, 30, 32, 43, 50, 55, 64] and batch.longest == batch.to("cpu").longest == 30
    assert batch.attention_mask.sum(1).tolist() == [30, 23]
    assert (batch.labels[batch.position_ids == 0] == IGNORED).all()


def test_flash_attention_finds_the_examples_of_a_single_row() -> None:
    batch = pack(rows([7, 30, 5, 11]), 0, LIMIT, single=True)
    assert batch.input_ids.shape == (1, 56) and _is_packed_sequence(batch.position_ids, 1)
    (ends, _), (longest, _) = prepare_fa_kwargs_from_position_ids(batch.position_ids)
    assert ends.tolist() == [0, 7, 37, 42, 53, 56] and longest == 30
    assert batch.starts is not None and torch.equal(ends, batch.starts) and batch.longest == longest


def prepared(kind: str, attention: str, checkpointing: bool) -> tuple[LlamaForCausalLM, Salience]:
    model = tiny.model(kind)
    model.set_attn_implementation(attention)
    anatomy = anatomy_of(model.config)
    adapter.attach(model, anatomy, ("q", "v"), 4, 0)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    salience = Salience(anatomy, 0.0, "normalized", 0.3, CPU)
    salience.install(model)
    return model, salience


def learn(model: LlamaForCausalLM, salience: Salience, batch: Batch) -> dict[str, torch.Tensor]:
    """Loss, gradients, masses and scores of one batch."""
    model.zero_grad()
    salience.begin(batch.attention_mask, torch.float32, positions=batch.position_ids)
    loss = summed_loss(model, batch) / 50
    loss.backward()
    salience.end()
    learnt = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    learnt |= {"loss": loss.detach(), "masses": salience.abs_sums.clone()}
    salience.measure_outliers(model)
    salience.update(1.0)
    return learnt | {"scores": salience.average.clone()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_nothing_that_is_learnt_differs(kind: str, attention: str, checkpointing: bool) -> None:
    examples = rows([9, 4, 21, 13, 2, 17, 30, 6])
    model, salience = prepared(kind, attention, checkpointing)
    apart = learn(model, salience, collate(examples, 0))
    for single in (False, True):
        batch = pack(examples, 0, LIMIT, single)
        assert batch.input_ids.numel() < 0.6 * collate(examples, 0).input_ids.numel()
        for name, value in learn(model, salience, batch).items():
            scale = apart[name].abs().max()
            assert torch.allclose(value / scale, apart[name] / scale, rtol=0, atol=1e-5), name


def test_positions_that_do_not_restart_would_show() -> None:
    examples = rows([9, 4, 21, 13])
    model, salience = prepared("gqa", "sdpa", False)
    apart = learn(model, salience, collate(examples, 0))
    batch = pack(examples, 0, LIMIT)
    mixed = learn(model, salience, Batch(batch.input_ids, batch.attention_mask, batch.labels))
    assert not torch.allclose(mixed["loss"], apart["loss"], rtol=1e-3)


@pytest.mark.dist
@pytest.mark.parametrize("world", [1, 2])
def test_whole_runs_decide_the_same(world: int, tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    flags = ["--pruning", "gradual", "--structure", "adaptive", "--max_steps", "12", "--sparsity", "0.5"]
    flags += ["--align", "4", "--mask_step", "0.25", "--prune_every", "4"]
    expected = reference_run(tmp_path, flags)
    size = ["--per_device_train_batch_size", str(4 // world), "--gradient_accumulation_steps", "1"]
    packed = [*flags, *size, "--packing"]
    jobs = [{"stages": [(2, False), (3, False)], "modes": {"packed": packed}}]
    if world == 1:
        jobs.append({"stages": [(3, False)], "modes": {"starts": [*packed, "--attn_implementation", "varlen"]}})
    results = [multiprocess.run(world, "runs", {"folder": str(tmp_path), **job}) for job in jobs]
    for name, run in (item for runs in results for item in runs.items()):
        for fact in ("alive", "ranks", "kept"):
            assert run[fact] == expected[fact], (name, fact)
        assert np.allclose(run["losses"], expected["losses"], rtol=2e-5), name
        assert np.allclose(run["scores"], expected["scores"], rtol=1e-3), name
        assert np.allclose(run["importance"], expected["importance"], rtol=1e-3), name


def test_scores_by_example_need_a_row_for_each(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}", encoding="utf8")
    words = ["--deepspeed", str(tmp_path / "ds.json"), "--model_name_or_path", "m", "--data_path", "d", "--packing"]
    with pytest.raises(UserError, match="--packing true does not support --score fisher") as caught:
        resolve([*words, "--pruning", "posttuning", "--score", "fisher"])
    assert "\n" not in str(caught.value)
