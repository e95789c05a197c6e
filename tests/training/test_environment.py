"""What a run says of its command and its machine."""

from __future__ import annotations

import shlex
import sys

import pytest
import torch
import transformers

from apt_ds.training import environment


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["launchers/train.py", "--output_dir", "a folder", "--data_path", "it's"]
    monkeypatch.setattr(sys, "argv", [words[0], "--local_rank=0", *words[1:]])
    assert shlex.split(environment.command()) == words
    # one line of config.yaml holds it
    monkeypatch.setattr(sys, "argv", ["train.py", "two\nlines"])
    assert "\n" not in environment.command()


def test_versions_are_those_that_run() -> None:
    facts = environment.describe()
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert facts["versions"]["transformers"] == transformers.__version__
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert facts["world_size"] == 1 and facts["device"].startswith("CPU, ")


def test_the_command_names_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train.py", "--hub_token", "hf_one", "--push_to_hub", "--hub_token=hf_two", "--output_dir", "out"]
    monkeypatch.setattr(sys, "argv", words)
    assert environment.command() == "train.py --push_to_hub --output_dir out"
