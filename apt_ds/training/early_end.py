"""Why a run ends before its last step: a signal, a full disk, or too many steps in a row that are not finite."""

from __future__ import annotations

import math

from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import collectives
from apt_ds.runtime.signals import Stopped, StopSignals
from apt_ds.training.metrics import MetricsLogger


class EarlyEnd:
    """The same on all ranks, except for what this rank has received.

    Attributes:
        nonfinite_steps: how many of the last steps in a row had a non-finite loss or gradient.
        signal: number of a signal that some rank received. 0 without one.
        failure: why the first rank could not write a line of metrics.
    """

    def __init__(self, run: RunConfig, stop_signals: StopSignals, metrics_logger: MetricsLogger) -> None:
        self.fp16, self.limit = run.optim.fp16, run.optim.max_nonfinite_steps
        self.stop_signals, self.metrics_logger = stop_signals, metrics_logger
        self.nonfinite_steps = 0
        self.signal = 0
        self.failure: UserError | None = None

    def begin(self) -> None:
        """Declare that the run has something to save. It ends here if a signal came before."""
        self.stop_signals.begin()

    @property
    def received(self) -> bool:
        """Whether this rank received a signal, or could not write a line of metrics."""
        return self.stop_signals.asked > 0 or self.metrics_logger.failure is not None

    def listen(self) -> None:
        """Learn what some rank has received. Collective."""
        reports = collectives.gather_objects((self.stop_signals.asked, self.metrics_logger.failure))
        self.signal = max(asked for asked, _ in reports)
        self.failure = next((failure for _, failure in reports if failure is not None), None)

    def listen_if(self, stop_ranks: int) -> None:
        """Learn what some rank has received, if a step's sums counted such ranks. Collective: they count alike."""
        if stop_ranks > 0:
            self.listen()
        else:
            self.signal = 0

    def watch(self, step: str, loss: float, good: bool) -> None:
        """Count a step that was skipped and report it.

        Args:
            step: the step's name in the message.
            loss: mean loss over the global batch.
            good: whether loss and gradients were finite.
        """
        # under fp16 the loss scaler overflows on purpose to find its scale: a finite loss is no failure
        if good or (self.fp16 and math.isfinite(loss)):
            self.nonfinite_steps = 0
            return
        self.nonfinite_steps += 1
        self.metrics_logger.warn(
            f"{step}: non-finite loss or gradient (loss {loss}). The step is neither applied nor scored"
        )

    def must_end(self) -> bool:
        """Whether the run ends at this step boundary."""
        return self.signal > 0 or self.failure is not None or self.nonfinite_steps >= self.limit

    def end(self, where: str) -> None:
        """End the run, which has been saved, if it must end.

        Args:
            where: the step boundary, in words.

        Raises:
            UserError: too many steps in a row were not finite, or a line of metrics could not be written.
            Stopped: some rank received a signal.
        """
        if self.nonfinite_steps >= self.limit:
            raise UserError(
                f"{where}: {self.nonfinite_steps} steps in a row had a non-finite loss or gradient. Lower "
                "--learning_rate, use --bf16, or look at the data of these steps"
            )
        if self.failure is not None:
            raise self.failure
        if self.signal:
            raise Stopped(self.signal, f"stopped {where}: go on with --resume_from_checkpoint last")

    def state_dict(self) -> tuple[int, dict[str, Tensor]]:
        """`nonfinite_steps` and no tensors."""
        return self.nonfinite_steps, {}

    def load_state_dict(self, values: int, tensors: dict[str, Tensor]) -> None:
        """Resume from what `state_dict` returned."""
        self.nonfinite_steps = values
