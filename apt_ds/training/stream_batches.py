"""The micro-batches of a stream: every rank reads its part, and all ranks exchange the rows of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apt_ds.config.run_config import RunConfig
from apt_ds.data.length_order import Order
from apt_ds.data.stream_encoders import ArrayRow, State
from apt_ds.data.stream_rows import MixedRows
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.runtime import collectives, heartbeat
from apt_ds.training.micro_batches import MicroBatches, StepData, layout_of_lengths
from apt_ds.training.read_ahead import ReadAhead
from apt_ds.training.streaming import Stream, as_rows


class StreamBatches(MicroBatches):
    """Micro-batches of the steps of a stream, in order. A step before the next one rewinds the stream.

    Steps are collective. With --dataloader_num_workers a thread reads this rank's rows of as many coming steps.
    """

    def __init__(self, run: RunConfig, stream: Stream, order: Order, pad_id: int, device: torch.device) -> None:
        # no thread may take part in the exchange
        super().__init__(
            run.replace(dataloader_num_workers=0), TokenizedSet({}, 0, stream.fingerprint), order, pad_id, device
        )
        self.stream = stream
        self._share = order.global_batch // self._world
        self._ahead = run.data.dataloader_num_workers
        self._next = 0  # the step whose rows come next
        self._mixed: MixedRows | None = None
        self._reading: ReadAhead[tuple[list[ArrayRow], State, int]] | None = None
        self._state: State | None = None  # before the next step. None: at the start
        self._dropped = 0

    def _make(self, step: int) -> StepData:
        """The rows of a step: first those of rank 0, then those of rank 1, and so on. Collective."""
        if step < self._next:
            self._rewind()
        own: list[ArrayRow] = []
        failure: Exception | None = None
        try:
            while self._next <= step:
                heartbeat.progress()
                own = self._read()
        except Exception as error:
            failure = error
        gathered = collectives.gather_objects((own, failure))
        for _, reported in gathered:
            if reported is not None:
                raise reported
        rows = as_rows([row for share, _ in gathered for row in share])
        lengths = [len(row["input_ids"]) for row in rows]
        return StepData(rows, layout_of_lengths(self.run_config, lengths, self.slots))

    def _read(self) -> list[ArrayRow]:
        """This rank's rows of the next step."""
        if self._reading is None:
            self._mixed = self.stream.open()
            self._reading = ReadAhead(self._take, self._ahead)
        rows, self._state, self._dropped = self._reading.next()
        self._next += 1
        return rows

    def _take(self) -> tuple[list[ArrayRow], State, int]:
        """The next rows, with the state and the count of dropped examples after them."""
        assert self._mixed is not None
        if self._mixed.place == 0 and self._state is not None:
            self._mixed.load(self._state)
        return self._mixed.take(self._share), self._mixed.state(), self._mixed.dropped

    def _rewind(self) -> None:
        """Begin again at the first step."""
        self.close()
        self._next, self._state, self._current = 0, None, None

    def close(self) -> None:
        """End the thread that reads ahead. A later step goes on where the last one ended."""
        super().close()
        if self._reading is not None:
            self._reading.close()
        self._reading = self._mixed = None

    def dropped(self) -> int:
        """Examples that gave no row, on all ranks. Collective."""
        return sum(collectives.gather_objects(self._dropped))

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The next step, and by rank where its rows begin. Collective."""
        return {"next": self._next, "ranks": collectives.gather_objects((self._state, self._dropped))}, {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on where `state_dict` was taken, on as many ranks."""
        self._rewind()
        self._next = values["next"]
        self._state, self._dropped = values["ranks"][collectives.rank()]
