"""When a run evaluates its model, and the results."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from apt_ds.eval.evaluator import Evaluator
from apt_ds.runtime import heartbeat, zero
from apt_ds.training.data_figures import DataSizes
from apt_ds.training.early_end import EarlyEnd
from apt_ds.training.meter import Meter
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.model_figures import ModelFigures
from apt_ds.training.score_history import ScoreHistory
from apt_ds.training.summary_schema import Figures


class Evaluations:
    """Evaluates before the first step, after a cut at once, between steps and after the last step.

    Attributes:
        figures: results so far, by the keys of the summary.
        score_history: scores between steps.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        score_history: ScoreHistory,
        meter: Meter,
        metrics_logger: MetricsLogger,
        early_end: EarlyEnd,
    ) -> None:
        self.evaluator, self.score_history = evaluator, score_history
        self.meter, self.metrics_logger, self.early_end = meter, metrics_logger, early_end
        self.figures: Figures = {}

    def before(self, engine: zero.Engine, data: DataSizes) -> ModelFigures:
        """Evaluate before the first step. Collective."""
        self.figures["before"] = self._evaluate(engine, 0)
        self.figures["data"] = data
        return self.figures["before"]

    def after_cut(self, engine: zero.Engine, step: int) -> None:
        """Evaluate after a cut at once, before any step of the smaller model. step: updates so far. Collective."""
        self.figures["after_cut"] = self._evaluate(engine, step)

    def after(self, engine: zero.Engine, step: int) -> tuple[ModelFigures, bool]:
        """The evaluation after the last step, number `step`, and whether it is new. Collective.

        A resumed run takes the saved one. Sizes are counted again, since --export_bits may have changed.
        """
        if "after" in self.figures:
            return cast(ModelFigures, self.figures["after"] | self.evaluator.sizes(engine)), False
        return self._evaluate(engine, step), True

    def _evaluate(self, engine: zero.Engine, step: int) -> ModelFigures:
        """Evaluate the model after `step` updates: loss, metrics, perplexities and sizes. Collective."""
        heartbeat.phase("evaluation", limited=False)
        with self.meter.evaluation():
            figures = self.evaluator.evaluate(engine)
        self.metrics_logger.evaluated(step, figures)
        self.early_end.listen()
        return cast(ModelFigures, figures)

    def score(self, engine: zero.Engine, step: int, at_target: bool) -> float:
        """The score after `step` updates, taken once. Collective.

        Args:
            engine: trains the model.
            step: number of updates so far.
            at_target: whether the model has the size that the run prunes to.
        """
        if not self.score_history.knows(step):
            heartbeat.phase(f"step {step}: evaluation", limited=False)
            with self.meter.evaluation():
                score = self.evaluator.score(engine)
            self.score_history.take(step, score, self.meter.seconds, at_target)
            self.metrics_logger.say(f"step {step}: score {score:.4f}")
            self.metrics_logger.evaluated(step, {"score": score})
            self.early_end.listen()
        return self.score_history.score

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`figures` and no tensors."""
        return cast(dict[str, Any], self.figures), {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Resume from what `state_dict` returned."""
        self.figures = cast(Figures, values)

    def load_after(self, figures: dict[str, Any]) -> None:
        """Take the evaluation after the last step from a checkpoint."""
        self.figures["after"] = cast(ModelFigures, figures)
