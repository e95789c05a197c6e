"""The dense model of a run with --distill logits: from its cache or live, and what the summary says of it."""

from __future__ import annotations

from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.data.special_tokens import resolve_pad_id
from apt_ds.data.teacher_cache import TeacherCache
from apt_ds.models.loading import Base
from apt_ds.runtime import zero
from apt_ds.training.dense_tokens import make_or_find
from apt_ds.training.live_teacher import LiveTeacher
from apt_ds.training.micro_batches import MicroBatches
from apt_ds.training.run_data import Data
from apt_ds.training.training_figures import DistillFigures


class DenseDistillation:
    """Gives a run's micro-batches what the dense model says of their trained tokens."""

    def __init__(self, run: RunConfig, base: Base, config: zero.Config, data: Data, batches: MicroBatches) -> None:
        self.run_config, self.base, self.config, self.data, self.batches = run, base, config, data, batches
        self._cache: TeacherCache | None = None

    def begin(self, model: nn.Module, fingerprint: str) -> dict[str, str]:
        """Find or make the cache, or load the live model, before the first step. Collective.

        Args:
            model: the base model as it was loaded: without adapters, masks and an engine.
            fingerprint: that of its weights.

        Returns:
            What a resumed run must share, by the keys of `checkpoint.contents.FINGERPRINTED`.

        Raises:
            UserError: --teacher_cache holds something else, or the disk has not enough room.
        """
        run = self.run_config
        if run.pruning.teacher_source == "live":
            self.batches.add_live_teacher(LiveTeacher(run, self.base).add)
            return {}
        pad_id = resolve_pad_id(self.base.tokenizer)
        self._cache = make_or_find(run, self.base, self.config, self.data, model, fingerprint, pad_id)
        self.batches.add_teacher(self._cache)
        return {"teacher": self._cache.digest}

    def figures(self, distance: float | None) -> DistillFigures:
        """For the summary. distance: of the last step, in nats."""
        figures: DistillFigures = {"source": self.run_config.pruning.teacher_source, "distance": distance}
        if self._cache is None:
            return figures
        layout = self._cache.layout
        return {**figures, "tokens": layout.tokens, "bytes": layout.bytes, "seconds": self._cache.seconds}
