"""What a run changes in its Python process, put back for a caller that goes on afterwards.

`api` enters it around every function. A command ends with its run and needs none of it.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import datasets
import huggingface_hub.utils as hub
import numpy as np
import torch
from transformers.utils import logging as transformers_logging

LOGGERS = ("apt_ds.data", "bitsandbytes", "datasets", "DeepSpeed", "huggingface_hub", "lm_eval", "transformers")


@contextmanager
def restored() -> Iterator[None]:
    """Inside, torch has the defaults that a run assumes. Afterwards the process has its own state back.

    The state is torch's defaults, all random numbers, log levels, progress bars, filters of warnings, the hook of
    uncaught exceptions, and the functions that ZeRO 3 replaces.
    """
    with ExitStack() as stack:
        for part in (_torch_defaults(), _random_numbers(), _messages(), _replaced_functions()):
            stack.enter_context(part)
        yield


@contextmanager
def _torch_defaults() -> Iterator[None]:
    """New tensors are float32 on the CPU, and backward passes work, whatever surrounds the call."""
    dtype = torch.get_default_dtype()
    devices = {"cpu", *(["cuda"] if torch.cuda.is_available() else [])}
    with ExitStack() as stack:
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in devices:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def _random_numbers() -> Iterator[None]:
    """A run seeds every generator. A caller that draws numbers between runs would draw the same ones each time."""
    python, vectors = random.getstate(), np.random.get_state()
    # whoever asks for the current device starts CUDA, which a run prepares first
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(vectors)


@contextmanager
def _messages() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    bars = transformers_logging.is_progress_bar_enabled()
    quiet_hub, quiet_datasets = hub.are_progress_bars_disabled(), datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if bars:
                # shows the hub's bars too
                transformers_logging.enable_progress_bar()
            (hub.disable_progress_bars if quiet_hub else hub.enable_progress_bars)()
            (datasets.disable_progress_bars if quiet_datasets else datasets.enable_progress_bars)()


@contextmanager
def _replaced_functions() -> Iterator[None]:
    """Each process group adds a layer to the hook. ZeRO 3 replaces `linear` and never puts it back."""
    hook, linear = sys.excepthook, torch.nn.functional.linear
    try:
        yield
    finally:
        sys.excepthook, torch.nn.functional.linear = hook, linear
