"""A dense model in memory says what the model itself says, and draws no random number of the run."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import collate
from apt_ds.models import loading
from apt_ds.training.live_teacher import LiveTeacher
from tests.support import tiny

ROWS = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}]


def test_a_batch_gets_the_likeliest_tokens_of_the_base(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    base = loading.find_base(str(tmp_path / "model"))
    run = RunConfig(model_name_or_path=str(tmp_path / "model"), distill_top_k=3, distill_temperature=2.0)
    state = torch.get_rng_state()
    teacher = LiveTeacher(run, base)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    batch = collate(ROWS, 0)
    taught = teacher.add(batch)
    with torch.no_grad():
        logits = teacher.model(batch.input_ids).logits
    top = F.log_softmax(torch.stack([logits[0, 1], logits[0, 2], logits[1, 0]]) / 2, -1).topk(3)
    assert torch.equal(taught.teacher_ids, top.indices)
    torch.testing.assert_close(taught.teacher_log_probabilities, top.values)
    assert torch.equal(taught.input_ids, batch.input_ids) and batch.teacher_ids is None


def test_no_more_tokens_are_known_than_there_are(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    base = loading.find_base(str(tmp_path / "model"))
    run = RunConfig(model_name_or_path=str(tmp_path / "model"), distill_top_k=10**6)
    assert LiveTeacher(run, base).add(collate(ROWS, 0)).teacher_ids.shape == (3, base.config.vocab_size)
