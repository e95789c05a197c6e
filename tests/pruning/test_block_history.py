"""Which blocks remain after several cuts, and which cut removed the others."""

from __future__ import annotations

import numpy as np

from apt_ds.pruning.block_history import BlockHistory


def twice_cut() -> BlockHistory:
    history = BlockHistory(6)
    history.follow(np.array([True, False, True, True, True, False]), None)
    history.follow(np.array([True, True, False, True]), np.array([1.0, 0.5, 9.0, 2.0]))
    return history


def test_blocks_keep_their_original_numbers_over_cuts() -> None:
    history = twice_cut()
    assert history.kept_ids.tolist() == [0, 2, 4]
    assert history.removed_in_cut.tolist() == [0, 1, 0, 2, 0, 1]
    assert history.scale.tolist() == [1.0, 0.5, 2.0]


def test_factors_of_several_cuts_multiply() -> None:
    history = twice_cut()
    history.follow(np.array([False, True, True]), np.array([7.0, 0.5, 0.5]))
    assert history.scale.tolist() == [0.25, 1.0] and history.kept_ids.tolist() == [2, 4]
    assert history.removed_in_cut[0] == 3


def test_every_cut_can_be_repeated_from_the_history() -> None:
    removed = twice_cut().removed_in_cut
    blocks = np.arange(6)
    for number in (1, 2):
        present = (removed == 0) | (removed >= number)
        blocks = blocks[removed[present] != number]
    assert blocks.tolist() == [0, 2, 4]


def test_a_history_is_restored_from_its_state() -> None:
    history, restored = twice_cut(), BlockHistory(6)
    restored.load_state_dict(history.state_dict())
    for kept in (history, restored):
        kept.follow(np.array([True, False, True]), None)
    assert restored.kept_ids.tolist() == history.kept_ids.tolist() == [0, 4]
    assert restored.removed_in_cut.tolist() == history.removed_in_cut.tolist()
    assert restored.scale.tolist() == history.scale.tolist()
