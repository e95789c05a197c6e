"""The layer mapping phi of self-distillation (METHOD.md section 7), from distances over a whole global batch.

A teacher layer is compared with the nearest student layer of the same stack. `--layer_match step` measures distances
on the states of the same step. `--layer_match previous` uses the distances of the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from apt_ds.losses import distillation
from apt_ds.models.blocks import Anatomy
from apt_ds.runtime import collectives


class LayerMatcher:
    """Draws the teacher layers of each step and maps them to student layers. Equal on all ranks, but for `distances`.

    Attributes:
        stacks: Layer numbers of the encoder, of the decoder, or of both.
        stack_of: The stack of each layer, an index of `stacks`.
        mapping: Teacher layer to the student layer that it is compared with.
        same_step: Whether the mapping comes from the states of the same step.
        matched: Whether this step's mapping is known already. Only with `same_step`.
        teacher_layers: The teacher layers of this step.
        measured_layers: The teacher layers whose distances this step measures. Without `same_step` these are the
            layers of the next step.
        distances: fp32, flat, of [measured_layers, all layers]: this rank's sum over the micro-batches so far.
    """

    def __init__(self, anatomy: Anatomy, seed: int, same_step: bool, device: torch.device) -> None:
        self.seed, self.same_step, self.device = seed, same_step, device
        decoder_prefix = anatomy.decoder_prefix
        stacks: list[list[int]] = [[], []]
        for number, path in enumerate(anatomy.layers):
            stacks[bool(decoder_prefix) and path.startswith(decoder_prefix)].append(number)
        self.stacks = [stack for stack in stacks if stack]
        self.stack_of = {layer: index for index, stack in enumerate(self.stacks) for layer in stack}
        self.mapping = {layer: layer for stack in self.stacks for layer in stack}
        self.begin(0, measuring=False)

    def begin(self, step: int, measuring: bool) -> None:
        """Draw the layers of an optimizer step and clear its distances, which exist only if `measuring`."""
        self.teacher_layers = distillation.draw_layers(self.stacks, step, self.seed)
        self.measured_layers = (
            self.teacher_layers if self.same_step else distillation.draw_layers(self.stacks, step + 1, self.seed)
        )
        count = len(self.measured_layers) * len(self.stack_of) if measuring else 0
        self.distances = torch.zeros(count, device=self.device)
        self.matched = False

    @torch.no_grad()
    def measure(
        self,
        transform: Callable[[Tensor], Tensor],
        student_states: Mapping[int, Tensor],
        teacher_states: Mapping[int, Tensor],
        token_masks: Sequence[Tensor],
        hidden_mask: Tensor | None,
    ) -> None:
        """Add a micro-batch's distances between `measured_layers` and all student layers of their stacks.

        Args:
            transform: Tr.
            student_states: [B, L, d] by layer number, before Tr.
            teacher_states: [B, L, d] by layer number, at least of `measured_layers`.
            token_masks: [B, L] of each stack, 1 for tokens that count.
            hidden_mask: [d], see `distillation.compared_dimensions`.
        """
        table = self.distances.view(len(self.measured_layers), -1)
        for student_layer, state in student_states.items():
            transformed, stack = transform(state.detach()), self.stack_of[student_layer]
            for row, layer in enumerate(self.measured_layers):
                if self.stack_of[layer] == stack:
                    table[row, student_layer] += distillation.layer_distance(
                        transformed, teacher_states[layer], token_masks[stack], hidden_mask
                    )

    def rematch(self) -> None:
        """Map layers by the distances of this step, summed over ranks. Collective."""
        self._map(collectives.all_reduce_sum(self.distances))
        self.matched = True

    def pending(self) -> Tensor:
        """Distances that the caller sums over ranks and gives to `observe`. Empty with `same_step`."""
        return self.distances[:0] if self.same_step else self.distances

    def observe(self, summed: Tensor) -> None:
        """Map the layers of the next step by `pending`, summed over ranks."""
        if summed.numel():
            self._map(summed)

    def _map(self, distances: Tensor) -> None:
        table = distances.view(len(self.measured_layers), -1)
        self.mapping |= distillation.nearest_layers(table, self.measured_layers, self.stacks)
