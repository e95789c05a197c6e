"""Attention masks without a look at the device.

Transformers looks at the content of an attention mask, or at positions, to see whether a batch has padding or packed
rows. On a GPU the host waits for each look. The host knows the answers from the batch before it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

PACKED = "find_packed_sequence_indices"
PADDED = "_ignore_bidirectional_mask_sdpa"


@contextmanager
def known_rows(packed: bool | None, padded: bool | None) -> Iterator[None]:
    """Inside the context transformers makes the same masks as ever without a look at them.

    Args:
        packed: whether positions restart inside a row. None: unknown, so that transformers looks.
        padded: whether an attention mask has a 0. None as above.
    """
    looks = {name: getattr(masking_utils, name) for name in (PACKED, PADDED)}

    def ignores_mask(padding_mask: Tensor | None, *arguments: Any, **options: Any) -> bool:
        if padded and padding_mask is not None:
            return False
        return bool(looks[PADDED](padding_mask if padded is None else None, *arguments, **options))

    if packed is not None:
        setattr(masking_utils, PACKED, indices_of_examples if packed else lambda position_ids: None)
    setattr(masking_utils, PADDED, ignores_mask)
    try:
        yield
    finally:
        for name, look in looks.items():
            setattr(masking_utils, name, look)


def indices_of_examples(position_ids: Tensor) -> Tensor:
    """The number of the packed example to which each token belongs, int64 [B, L] -> [B, L].

    As transformers finds it, without its check whether any row has a second example.
    """
    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    return (steps != 1).cumsum(-1)
