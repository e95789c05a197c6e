"""The probability of each answer choice after each prompt, in batches. A prefix that prompts share is computed once.

Padding is on the right, where causal attention never reads it. So no attention mask is needed, and positions continue
from the shared prefix without being passed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data.mmlu import LETTERS
from apt_ds.eval.held_out import rank_batches
from apt_ds.runtime import collectives

TokenIds = list[int]
PrefixCache = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [1, heads, length, head_dim]


class Encoder:
    """Prompts to token ids, as lm-evaluation-harness does it: prompt and answer are tokenized as one text.

    Attributes:
        choice_ids: The token id of each answer letter.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find the token of each answer letter.

        Args:
            tokenizer: The model's tokenizer.

        Raises:
            UserError: A letter is not a single known token after the same context.
        """
        self._tokenizer = tokenizer
        rows = [tokenizer(f"Answer: {letter}")["input_ids"] for letter in LETTERS]
        self.choice_ids: TokenIds = [row[-1] for row in rows]
        same_context = all(row[:-1] == rows[0][:-1] for row in rows)
        if not same_context or len(set(self.choice_ids)) < len(LETTERS) or tokenizer.unk_token_id in self.choice_ids:
            raise UserError("this tokenizer has no single token for each of ' A', ' B', ' C', ' D' after 'Answer:'")

    def __call__(self, prompts: list[str]) -> list[TokenIds]:
        """Token ids of each prompt, without the answer."""
        rows = self._tokenizer([f"{prompt} {LETTERS[0]}" for prompt in prompts], verbose=False)["input_ids"]
        return [row[:-1] for row in rows]


def shared_length(rows: list[TokenIds]) -> int:
    """The length of the prefix that all rows share. At least one token of each row remains outside it."""
    lowest, highest = min(rows), max(rows)
    pairs = zip(lowest, highest, strict=False)
    count = next((i for i, (a, b) in enumerate(pairs) if a != b), len(lowest))
    return min(count, min(map(len, rows)) - 1)


@torch.no_grad()
def choice_scores(
    runner: nn.Module,
    rows: list[TokenIds],
    choice_ids: TokenIds,
    batch_size: int,
    device: torch.device,
    prefix: int = 0,
) -> Tensor:
    """Log-probability of each choice after each row. Collective.

    Every rank runs the same number of forward passes.

    Args:
        runner: A causal language model, or an engine around it.
        rows: Token ids of the prompts.
        choice_ids: Token ids of the choices.
        batch_size: Prompts per device and forward pass.
        device: The model's device.
        prefix: The first tokens that all rows share. They run once, and their keys and values are reused.

    Returns:
        fp32 [len(rows), len(choice_ids)] in nats, on the CPU.
    """
    cache = run_prefix(runner, rows[0][:prefix], device) if prefix else []

    def score(numbers: list[int]) -> Tensor:
        batch = [rows[number][prefix:] for number in numbers]
        return _last_scores(runner, batch, cache, device)[:, choice_ids].float().cpu()

    return score_rows(list(map(len, rows)), len(choice_ids), score, batch_size, device)


def score_rows(
    lengths: list[int], columns: int, score: Callable[[list[int]], Tensor], batch_size: int, device: torch.device
) -> Tensor:
    """Scores of rows, in batches that the ranks share. Collective.

    Args:
        lengths: The tokens of each row.
        columns: The scores of a row.
        score: The scores of a batch, fp32 [batch, columns] on the CPU, from the numbers of its rows. Every rank calls
            it equally often.
        batch_size: Rows per device and batch.
        device: The device that sums over ranks.

    Returns:
        fp32 [len(lengths), columns] on the CPU.
    """
    scores = torch.zeros(len(lengths), columns)
    # long rows first: a batch that exceeds the memory fails at once, and similar rows need little padding
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for places in rank_batches(len(lengths), batch_size):
        own = [order[i] for i in places]
        # a rank without rows left repeats one, because sharded weights need every rank
        batch_scores = score(own or [order[-1]])
        if own:
            scores[own] = batch_scores
    return collectives.all_reduce_sum(scores.to(device)).cpu()


def run_prefix(runner: nn.Module, ids: TokenIds, device: torch.device) -> PrefixCache:
    """Keys and values of the tokens that all rows share."""
    inputs = torch.tensor([ids], device=device)
    cache = runner(input_ids=inputs, use_cache=True, past_key_values=DynamicCache(), logits_to_keep=1).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


def with_prefix(prefix: PrefixCache, count: int) -> DynamicCache | None:
    """A cache that has the shared prefix for `count` rows. None without a prefix."""
    if not prefix:
        return None
    return DynamicCache([tuple(part.expand(count, -1, -1, -1) for part in layer) for layer in prefix])


def _last_scores(runner: nn.Module, batch: list[TokenIds], prefix: PrefixCache, device: torch.device) -> Tensor:
    """Log-probabilities after the last token of each row, fp32 [B, vocabulary]."""
    lengths = torch.tensor([len(row) for row in batch], device=device)
    inputs = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
    for number, row in enumerate(batch):
        inputs[number, : len(row)] = torch.tensor(row)
    # logits only at positions where some row ends
    ends, end_of_row = torch.unique(lengths - 1, return_inverse=True)
    cache = with_prefix(prefix, len(batch))
    output = runner(
        input_ids=inputs.to(device), past_key_values=cache, use_cache=cache is not None, logits_to_keep=ends
    )
    last = output.logits[torch.arange(len(batch), device=device), end_of_row]
    return torch.log_softmax(last.float(), dim=-1)
