"""The log-likelihood of texts that may follow a text, in batches. A prefix that all share is computed once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from apt_ds.eval.choice_scores import PrefixCache, TokenIds, run_prefix, score_rows, shared_length, with_prefix


class Continuation(NamedTuple):
    """A text and a text that may follow it, as one row.

    Attributes:
        ids: The token ids of both texts.
        targets: How many of the last tokens belong to the second text.
    """

    ids: TokenIds
    targets: int


def encode(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], max_tokens: int, begin: int | None
) -> list[Continuation]:
    """Both texts tokenized as one, as lm-evaluation-harness does it. Too long ones lose their first tokens.

    Args:
        tokenizer: The model's tokenizer.
        pairs: A text and what may follow it. The second begins with a space.
        max_tokens: Tokens that the model takes.
        begin: The token before the first text. None: whatever the tokenizer adds.
    """
    first = tokenizer([context for context, _ in pairs], verbose=False)["input_ids"]
    both = tokenizer([context + text for context, text in pairs], verbose=False)["input_ids"]
    rows = []
    for context, whole in zip(first, both, strict=True):
        targets = max(1, len(whole) - len(context))
        ids = whole if begin is None or whole[0] == begin else [begin, *whole]
        ids = ids[-max_tokens:]
        rows.append(Continuation(ids, min(targets, len(ids) - 1)))
    return rows


@torch.no_grad()
def continuation_scores(
    runner: nn.Module, rows: list[Continuation], batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each continuation. Collective. Every rank runs the same number of forward passes.

    Args:
        runner: A causal language model, or an engine around it.
        rows: Token ids with the continuations last.
        batch_size: Rows per device and forward pass.
        device: The model's device.

    Returns:
        The sum of the log-probabilities of the continuation's tokens, fp32 [len(rows)] in nats, and whether each of
        them is the most probable token, bool [len(rows)]. Both on the CPU.
    """
    # of a row at least the token before the continuation is outside the prefix
    prefix = max(0, min(shared_length([row.ids for row in rows]), *(len(row.ids) - row.targets - 1 for row in rows)))
    cache = run_prefix(runner, rows[0].ids[:prefix], device) if prefix else []

    def score(numbers: list[int]) -> Tensor:
        batch = [rows[number]._replace(ids=rows[number].ids[prefix:]) for number in numbers]
        return _batch_scores(runner, batch, cache, device)

    scores = score_rows([len(row.ids) for row in rows], 2, score, batch_size, device)
    return scores[:, 0], scores[:, 1] > 0.5


def _batch_scores(runner: nn.Module, batch: list[Continuation], prefix: PrefixCache, device: torch.device) -> Tensor:
    """Log-likelihood and whether it is greedy, of each row, fp32 [B, 2] on the CPU."""
    inputs = torch.zeros(len(batch), max(len(row.ids) for row in batch), dtype=torch.long)
    for number, row in enumerate(batch):
        inputs[number, : len(row.ids)] = torch.tensor(row.ids)
    ends = [len(row.ids) - 1 for row in batch]
    # logits only at positions that predict a token of some continuation
    kept = sorted({place for row, end in zip(batch, ends, strict=True) for place in range(end - row.targets, end)})
    cache = with_prefix(prefix, len(batch))
    output = runner(
        input_ids=inputs.to(device),
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=torch.tensor(kept, device=device),
    )
    scores = []
    for number, (row, end) in enumerate(zip(batch, ends, strict=True)):
        first = kept.index(end - row.targets)
        log_probs = torch.log_softmax(output.logits[number, first : first + row.targets].float(), dim=-1)
        targets = inputs[number, end + 1 - row.targets : end + 1].to(device)
        greedy = (log_probs.argmax(dim=-1) == targets).all()
        scores.append(torch.stack([log_probs.gather(1, targets[:, None]).sum(), greedy.float()]))
    return torch.stack(scores).cpu()
