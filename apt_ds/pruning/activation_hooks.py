"""Hooks that observe the activations of all blocks and their gradients (METHOD.md section 3).

A hook observes an activation x. The gradient hook of x alone commits what the scorer makes of the two. A gradient hook
fires once per micro-batch, even where gradient checkpointing runs the forward pass twice. A subclass decides what the
two give.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apt_ds.models.blocks import ALL_KINDS, HIDDEN, Anatomy, block_slices, plural
from apt_ds.pruning.scorer import Scorer
from apt_ds.runtime.profiler import seen
from apt_ds.runtime.transfer import sent

Observer = Callable[[Tensor], None]


@dataclass(frozen=True)
class CountedTokens:
    """Which tokens of a micro-batch count for the scores.

    Attributes:
        valid: 1 or 0, [1, tokens].
        blank: int64 [n], the positions of the tokens that do not count. None where only `valid` is read.
        members: what each token counts in each packed example, [examples, tokens]. None where a row is an example.
        rows: number of rows.
    """

    valid: Tensor
    blank: Tensor | None = None
    members: Tensor | None = None
    rows: int = 1


class ActivationHooks(Scorer):
    """Hooks on the input of every consumer (heads, neurons) and on the output of every writer (hidden dimensions).

    A score may keep activations until their gradients arrive, so that a hook without use costs memory. Experts have no
    hook of their own. What their neurons do gives their score.

    Attributes:
        kinds: the kinds of block that may be removed, some of `PLURALS`. Other blocks get no hook and a score of 0.
        owner: int64 [dimensions], the block of each observed dimension.
        paths: of the hooked modules, consumers first.
        places: the slice of every hooked module in `owner`.
        lean: whether sums should read memory once and write none.
        tokens: those that count in the micro-batch. None while nothing is scored.
        decoder_tokens: the same for a decoder. None without one.
        example_offset: position of the micro-batch's first example in the global batch.
    """

    uses_hooks = True

    def __init__(self, anatomy: Anatomy, device: torch.device, kinds: tuple[str, ...] = ALL_KINDS) -> None:
        self.kinds = kinds
        self._handles: list[RemovableHandle] = []
        self.lean = device.type != "cpu"
        self.tokens: CountedTokens | None = None
        self.decoder_tokens: CountedTokens | None = None
        self.example_offset = 0
        super().__init__(anatomy, device)

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy and forget all sums. Hooks must be off."""
        assert not self._handles, "remove() the hooks before a cut"
        super().resize(anatomy)
        offsets = dict(block_slices(anatomy.sizes))
        owners = []
        for number, site in enumerate(anatomy.sites):
            span = offsets[number] if site.kind != "expert" else slice(0, 0)
            block = torch.arange(span.start, span.stop)
            owners.append(block.repeat_interleave(site.unit))
        hidden = torch.arange(offsets[HIDDEN].start, offsets[HIDDEN].stop)
        owners += [hidden] * len(anatomy.writers)
        self.paths = [*(site.consumer for site in anatomy.sites), *anatomy.writers]
        self.owner = torch.cat(owners).to(self.device)
        ends = torch.tensor([len(owner) for owner in owners]).cumsum(0).tolist()
        self.places = [slice(end - len(owner), end) for end, owner in zip(ends, owners, strict=True)]

    def install(self, model: nn.Module) -> None:
        """Put the hooks on `model`. Call it after `Masks.install`, so that the hooks observe masked activations."""
        assert not self._handles
        consumers = len(self.anatomy.sites)
        nested = {mixture.neuron_site for mixture in self.anatomy.experts}
        for number, path in enumerate(self.paths):
            if not self.observes(number if number < consumers else HIDDEN):
                continue
            if number < consumers and (
                self.anatomy.sites[number].kind == "expert" or not self.anatomy.sizes.counts[number]
            ):
                continue
            module, observer = model.get_submodule(path), self._observer(number)
            if number in nested:
                self._handles.append(module.register_forward_pre_hook(self._slots_hook(number)))
            elif number < consumers:
                self._handles.append(module.register_forward_pre_hook(input_hook(observer)))
            else:
                self._handles.append(module.register_forward_hook(output_hook(observer)))

    def observes(self, site: int) -> bool:
        """Whether the blocks of a site, or with `HIDDEN` the hidden dimensions, need scores.

        An expert gets its score from its neurons.
        """
        of_experts = any(site == mixture.neuron_site for mixture in self.anatomy.experts)
        return plural(self.anatomy.kind(site)) in self.kinds or (of_experts and plural("expert") in self.kinds)

    def remove(self) -> None:
        """Remove the hooks. Scoring costs nothing from here on."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(
        self,
        attention_mask: Tensor,
        dtype: torch.dtype,
        example_offset: int = 0,
        decoder_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> None:
        """Describe the micro-batch of the next scored forward pass.

        Pass CPU tensors: reading a GPU tensor here would synchronise with the device.

        Args:
            attention_mask: which tokens count, 1 or 0, [batch, length].
            dtype: the dtype of activations.
            example_offset: position of the micro-batch's first example in the global batch.
            decoder_mask: the mask of a decoder's tokens, [batch, length].
            positions: positions of packed examples, [batch, length]. They restart at every example.
        """
        self.example_offset = example_offset
        members = None if positions is None else example_members(attention_mask, positions, dtype)
        self.tokens = self._counted_tokens(attention_mask, dtype, members)
        self.decoder_tokens = None if decoder_mask is None else self._counted_tokens(decoder_mask, dtype)

    def _counted_tokens(self, mask: Tensor, dtype: torch.dtype, members: Tensor | None = None) -> CountedTokens:
        return CountedTokens(
            self.sent(mask.reshape(1, -1).to(dtype)),
            self.sent((mask.flatten() == 0).nonzero().squeeze(1)) if self.lean else None,
            None if members is None else self.sent(members),
            len(mask),
        )

    def sent(self, tensor: Tensor) -> Tensor:
        """The tensor on the device of the scores, without a synchronisation."""
        return sent(tensor, self.device)

    def end(self) -> None:
        """Score no further forward pass, such as those of an evaluation."""
        self.tokens = self.decoder_tokens = None

    def counted(self, number: int) -> CountedTokens:
        """The tokens that count at hooked module `number`. Call it between `begin` and `end`."""
        prefix = self.anatomy.decoder_prefix
        tokens = self.decoder_tokens if prefix and self.paths[number].startswith(prefix) else self.tokens
        assert tokens is not None, "begin() comes before a scored forward pass"
        return tokens

    @abstractmethod
    def watch(self, number: int, x: Tensor) -> Observer:
        """Observe an activation.

        Args:
            number: the hooked module, an index of `paths` and `places`.
            x: its activation, [batch, length, d].

        Returns:
            What to call with the gradient of `x`, a tensor like x.
        """

    def watch_slots(self, number: int, x: Tensor, experts: Tensor, tokens: Tensor) -> Observer:
        """Observe the neurons of a layer's experts. A score that supports mixtures implements it.

        Args:
            number: the hooked module, an index of `paths` and `places`. Its place is [E * f], expert after expert.
            x: the neurons of each slot, [S, f].
            experts: int64 [S], the expert of each slot.
            tokens: int64 [S], the token of each slot.

        Returns:
            What to call with the gradient of `x`, a tensor like x.
        """
        raise NotImplementedError(f"{type(self).__name__} does not score experts")

    def _observer(self, number: int) -> Observer:
        def observe(x: Tensor) -> None:
            self._observe(x, lambda value: seen("salience", self.watch)(number, value))

        return observe

    def _slots_hook(self, number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> None:
            x, *slots = args
            self._observe(x, lambda value: seen("salience", self.watch_slots)(number, value, *slots))

        return hook

    def _observe(self, x: Tensor, watch: Callable[[Tensor], Observer]) -> None:
        if self.tokens is None or not torch.is_grad_enabled():
            return
        if not x.requires_grad:
            x.requires_grad_()
        with torch.no_grad():
            commit = watch(x.detach())
        x.register_hook(seen("salience", commit))


def example_members(attention_mask: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """What each token counts in each packed example: 2 x [batch, length] -> [examples, batch * length]."""
    segments = (positions.flatten() == 0).cumsum(0) - 1
    counts = torch.zeros(int(segments[-1]) + 1, len(segments), dtype=dtype)
    counts[segments, torch.arange(len(segments))] = attention_mask.flatten().to(dtype)
    return counts


def input_hook(observer: Observer) -> Callable[..., None]:
    """A forward pre-hook that passes the module's first input to `observer`."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        observer(args[0])

    return hook


def output_hook(observer: Observer) -> Callable[..., None]:
    """A forward hook that passes the module's output to `observer`."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        observer(output)

    return hook
