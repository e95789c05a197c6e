"""The product's API: the content of `summary.json`. `metrics_schema.py` has the lines of `metrics.jsonl`.

`VERSION` goes up when a key changes its meaning or disappears. New keys may come without a new version.
SCHEMA.md of this folder has a table of all keys. Seconds are wall-clock seconds, bytes are bytes, both on rank 0.
"""

from __future__ import annotations

from typing import TypedDict

from apt_ds.training.data_figures import DataSizes
from apt_ds.training.model_figures import ModelFigures
from apt_ds.training.pruning_figures import PruningFigures
from apt_ds.training.training_figures import TrainingFigures

VERSION = 1


class ProfileFigures(TypedDict):
    """The time that steps spend in each phase, with --profile.

    Attributes:
        seconds: median over steps, by phase.
        share: fraction of the step, by phase.
        steps: how many were counted.
    """

    seconds: dict[str, float]
    share: dict[str, float]
    steps: dict[str, int]


class Sample(TypedDict):
    """A question of the evaluation set, and the greedy answers of the base model and of the written model."""

    question: str
    before: str
    after: str


class Environment(TypedDict):
    """Where a run came from.

    Attributes:
        command: the words of the process, as a shell reads them.
        world_size: processes.
        device: name of the first rank's device.
        versions: of Python and of the packages that compute.
    """

    command: str
    world_size: int
    device: str
    versions: dict[str, str]


class QuantizedFigures(TypedDict):
    """The quantized copy of the written model, with --export_quantization.

    Attributes:
        format: fp8, w4a16 or nf4.
        folder: its name in the output folder.
        held_out_loss_before, held_out_loss: of the written model and of the copy, both loaded from their folders.
        checkpoint_bytes: size of the copy's weights.
        mean_weight_error, largest_weight_error: relative error of a matrix.
    """

    format: str
    folder: str
    held_out_loss_before: float
    held_out_loss: float
    checkpoint_bytes: int
    mean_weight_error: float
    largest_weight_error: float


class WrittenModel(TypedDict):
    """The folder of the written model.

    Attributes:
        format: stock, adaptive or padded.
        bytes: of its weights.
        padding_bytes: those of them that are padding.
    """

    format: str
    bytes: int
    padding_bytes: int


class Figures(TypedDict, total=False):
    """Evaluations that a run has taken so far, in a checkpoint."""

    before: ModelFigures
    data: DataSizes
    after_cut: ModelFigures
    after: ModelFigures


class _Summary(TypedDict):
    version: int
    before: ModelFigures
    data: DataSizes
    pruning: PruningFigures
    training: TrainingFigures
    environment: Environment
    warnings: list[str]


class Summary(_Summary, total=False):
    """The content of `summary.json`.

    Attributes:
        before, after_cut, after: evaluations of the base model, after a cut at once, and after the last step.
        written: the folder of the written model.
        profile: with --profile, by "dense" and "cut".
        warnings: lines that the first rank printed as warnings since the run's last start.
        samples, note: with --report. The note says why generation was not measured.
        quantized: with --export_quantization.
    """

    after_cut: ModelFigures
    after: ModelFigures
    written: WrittenModel
    profile: dict[str, ProfileFigures]
    samples: list[Sample]
    note: str
    quantized: QuantizedFigures
