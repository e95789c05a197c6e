"""Log-likelihoods of continuations: neither batches nor a reused prefix change them."""

from __future__ import annotations

import pytest
import torch

from apt_ds.eval.continuation_scores import Continuation, continuation_scores, encode
from tests.support import tiny

CPU = torch.device("cpu")


def alone(model: torch.nn.Module, row: Continuation) -> tuple[float, bool]:
    """One row by itself, nothing padded, nothing reused."""
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        log_probs = model(ids).logits[0, -row.targets - 1 : -1].log_softmax(-1)
    targets = ids[0, -row.targets :]
    return float(log_probs.gather(1, targets[:, None]).sum()), bool((log_probs.argmax(-1) == targets).all())


@pytest.mark.parametrize("shared", [0, 9])
@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_a_batch_says_what_each_row_says_alone(kind: str, shared: int) -> None:
    model, rows = tiny.model(kind), []
    for number, (length, targets) in enumerate([(6, 1), (11, 4), (3, 1), (8, 3), (6, 2)]):
        ids = [*range(5, 5 + shared), *tiny.ids(1, length, number)[0].tolist()]
        with torch.no_grad():
            # of two rows the model would write the last token
            ids[-1] = int(model(torch.tensor([ids[:-1]])).logits[0, -1].argmax()) if number in (0, 2) else ids[-1]
        rows.append(Continuation(ids, targets))
    expected = [alone(model, row) for row in rows]
    for batch_size in (1, 2, 5):
        scores, greedy = continuation_scores(model, rows, batch_size, CPU)
        assert scores.tolist() == pytest.approx([score for score, _ in expected], abs=1e-4)
        assert greedy.tolist() == [same for _, same in expected]
    assert next(same for _, same in expected) and not all(same for _, same in expected)


def test_equal_contexts_with_other_continuations_share_the_context() -> None:
    model = tiny.model()
    rows = [Continuation([5, 6, 7, 8], 1), Continuation([5, 6, 7, 8, 9], 2), Continuation([5, 6, 7, 10], 1)]
    scores, _ = continuation_scores(model, rows, 2, CPU)
    assert scores.tolist() == pytest.approx([alone(model, row)[0] for row in rows], abs=1e-4)


def test_texts_are_tokenized_as_one_and_lose_their_start() -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer("the cat sees a dog")["input_ids"]
    assert encode(tokenizer, [("the cat sees", " a dog")], 99, None) == [Continuation(ids, 2)]
    assert encode(tokenizer, [("the cat sees", " a dog")], 99, 1) == [Continuation([1, *ids], 2)]
    assert encode(tokenizer, [("the cat sees", " a dog")], 4, 1) == [Continuation(ids[-4:], 2)]
    # one token must precede the first that is predicted
    assert encode(tokenizer, [("the", " cat sees a dog")], 3, None) == [Continuation(ids[-3:], 2)]
