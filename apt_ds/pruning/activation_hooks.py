"""Where scoring looks: taps on everything that blocks pass through, worn by a stock model as hooks (section 3).

A tap sees x, and the gradient hook of x alone commits what the two make: it fires once per micro-batch, whatever
kind of gradient checkpointing runs the forward pass twice. What is made of them is a subclass's business.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.runtime.profiler import seen


class ActivationHooks:
    """Hooks on the input of every consumer (heads, neurons) and on the output of every writer (hidden dimensions).

    owner: int64 [dimensions], the block each tapped dimension belongs to; places: the slice of every tap in it, those
    of the sites first; valid: [1, tokens], which tokens of the micro-batch count, None while nothing is scored;
    second: the same for the decoder's tokens where there is a decoder; members: what every token counts in every packed
    example, [examples, tokens], None where a row is one.
    """

    def __init__(self, anatomy: Anatomy, device: torch.device) -> None:
        self.device = device
        self._handles: list[RemovableHandle] = []
        self.valid: Tensor | None = None
        self.second: Tensor | None = None
        self.members: Tensor | None = None
        self.first = 0
        self.resize(anatomy)

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy; what was summed up is forgotten. Taps must be off."""
        assert not self._handles, "remove() the taps before a cut"
        self.anatomy = anatomy
        offsets = dict(block_slices(anatomy.sizes))
        owners = []
        for number, site in enumerate(anatomy.sites):
            block = torch.arange(offsets[number].start, offsets[number].stop)
            owners.append(block.repeat_interleave(site.unit))
        hidden = torch.arange(offsets[HIDDEN].start, offsets[HIDDEN].stop)
        owners += [hidden] * len(anatomy.writers)
        self.paths = [*(site.consumer for site in anatomy.sites), *anatomy.writers]
        self.owner = torch.cat(owners).to(self.device)
        ends = torch.tensor([len(owner) for owner in owners]).cumsum(0).tolist()
        self.places = [slice(end - len(owner), end) for end, owner in zip(ends, owners, strict=True)]

    def install(self, model: nn.Module) -> None:
        """Put the taps on `model`: after `Masks.install`, so that they see masked activations."""
        assert not self._handles
        for number, site in enumerate(self.anatomy.sites):
            hook = tap_input(self._tap(number))
            self._handles.append(model.get_submodule(site.consumer).register_forward_pre_hook(hook))
        for number, path in enumerate(self.anatomy.writers, start=len(self.anatomy.sites)):
            self._handles.append(model.get_submodule(path).register_forward_hook(tap_output(self._tap(number))))

    def remove(self) -> None:
        """Take the taps off: from here on scoring costs nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(
        self,
        attention_mask: Tensor,
        dtype: torch.dtype,
        first: int = 0,
        second_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> None:
        """Before each scored forward pass. Tensors are best on the host: to look one up on a device is to wait for it.

        attention_mask: which tokens count, [batch, length], 1 or 0; first: place of the micro-batch's first example
        in the global batch; second_mask: the same for the decoder's tokens where there is a decoder; positions: those
        of packed examples, [batch, length], which restart at every example.
        """
        self.first = first
        self.valid = self.sent(attention_mask.reshape(1, -1).to(dtype))
        self.second = None if second_mask is None else self.sent(second_mask.reshape(1, -1).to(dtype))
        self.members = None
        if positions is not None:
            segments = (positions.flatten() == 0).cumsum(0) - 1
            counts = torch.zeros(int(segments[-1]) + 1, len(segments), dtype=dtype)
            counts[segments, torch.arange(len(segments))] = attention_mask.flatten().to(dtype)
            self.members = self.sent(counts)
        self.prepare(attention_mask, attention_mask if second_mask is None else second_mask)

    def sent(self, tensor: Tensor) -> Tensor:
        """On this device, without waiting for it."""
        return tensor.to(self.device, non_blocking=True)

    def prepare(self, mask: Tensor, second: Tensor) -> None:
        """What else a subclass must know of the tokens before a forward pass: see `begin`."""

    def end(self) -> None:
        """After the backward pass: forward passes from here on (evaluation) are not scored."""
        self.valid = self.second = None

    def counted(self, number: int) -> Tensor | None:
        """Which tokens count at tap `number`, [1, tokens]."""
        second = self.anatomy.second
        return self.second if second and self.paths[number].startswith(second) else self.valid

    def watch(self, number: int, x: Tensor) -> Any:
        """What to call with the gradient of `x`, seen at tap `number`; returns a function of a tensor like x."""
        raise NotImplementedError

    def _tap(self, number: int) -> Any:
        def tap(x: Tensor) -> None:
            if self.valid is None or not torch.is_grad_enabled():
                return
            if not x.requires_grad:
                x.requires_grad_()
            with torch.no_grad():
                commit = seen("salience", self.watch)(number, x.detach())
            x.register_hook(seen("salience", commit))

        return tap


def tap_input(tap: Any) -> Any:
    """A forward pre-hook that shows the module's input to `tap`."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        tap(args[0])

    return hook


def tap_output(tap: Any) -> Any:
    """A forward hook that shows the module's output to `tap`."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        tap(output)

    return hook
