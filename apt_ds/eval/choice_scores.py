"""Which answer letter a model finds likeliest after each prompt, in batches, with what prompts share computed once.

Padding sits on the right, where causal attention never looks back from a real token: no mask, and positions
count on from the shared part by themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data.mmlu import LETTERS
from apt_ds.eval.held_out import shares
from apt_ds.runtime import collectives

Row = list[int]
Layers = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [1, heads, length, head_dim]


class Encoder:
    """Prompts to token ids as a harness does it: the text up to and with the answer is tokenized as one piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError if the four answers are not one token each, in the same context."""
        self._tokenizer = tokenizer
        rows = [tokenizer(f"Answer: {letter}")["input_ids"] for letter in LETTERS]
        self.letters: Row = [row[-1] for row in rows]
        alike = all(row[:-1] == rows[0][:-1] for row in rows)
        if not alike or len(set(self.letters)) < len(LETTERS) or tokenizer.unk_token_id in self.letters:
            raise UserError("this tokenizer has no single token for each of ' A', ' B', ' C', ' D' after 'Answer:'")

    def __call__(self, prompts: list[str]) -> list[Row]:
        """Ids of each prompt up to the place of its answer."""
        rows = self._tokenizer([f"{prompt} {LETTERS[0]}" for prompt in prompts], verbose=False)["input_ids"]
        return [row[:-1] for row in rows]


def shared_length(rows: list[Row]) -> int:
    """How many first ids all rows share, leaving each at least one of its own."""
    shortest, longest = min(rows), max(rows)
    count = next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
    return min(count, min(map(len, rows)) - 1)


@torch.no_grad()
def choice_scores(
    runner: nn.Module, rows: list[Row], letters: Row, batch_size: int, device: torch.device, prefix: int = 0
) -> Tensor:
    """Log-probability (fp32, nat) of each letter after each row, [len(rows), len(letters)], on the host.

    prefix: so many first ids, the same in all rows, are run once and their keys and values reused. Every rank
    runs as many forward passes, whatever the number of rows. Collective.
    """
    scores = torch.zeros(len(rows), len(letters))
    # long ones first: a batch that does not fit fails at once, and neighbours need little padding
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    layers = _run_prefix(runner, rows[0][:prefix], device) if prefix else []
    for share in shares(len(rows), batch_size):
        own = [order[i] for i in share]
        # a rank that has run out repeats a row: sharded weights need every rank
        batch = [rows[i][prefix:] for i in own or [order[-1]]]
        found = _last_scores(runner, batch, layers, device)[:, letters].float().cpu()
        if own:
            scores[own] = found
    return collectives.all_reduce_sum(scores.to(device)).cpu()


def _run_prefix(runner: nn.Module, ids: Row, device: torch.device) -> Layers:
    inputs = torch.tensor([ids], device=device)
    cache = runner(input_ids=inputs, use_cache=True, past_key_values=DynamicCache(), logits_to_keep=1).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


def _last_scores(runner: nn.Module, batch: list[Row], layers: Layers, device: torch.device) -> Tensor:
    """Log-probabilities after the last id of each row, [B, vocabulary], in the model's dtype or wider."""
    lengths = torch.tensor([len(row) for row in batch], device=device)
    inputs = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
    for number, row in enumerate(batch):
        inputs[number, : len(row)] = torch.tensor(row)
    # logits only where some row ends
    ends, where = torch.unique(lengths - 1, return_inverse=True)
    cache = None
    if layers:
        wide = [tuple(part.expand(len(batch), -1, -1, -1) for part in layer) for layer in layers]
        cache = DynamicCache(wide)
    out = runner(input_ids=inputs.to(device), past_key_values=cache, use_cache=cache is not None, logits_to_keep=ends)
    last = out.logits[torch.arange(len(batch), device=device), where]
    return torch.log_softmax(last.float(), dim=-1)
