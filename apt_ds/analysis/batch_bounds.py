"""The largest batches of a run: shapes that no batch of training, calibration or evaluation exceeds."""

from __future__ import annotations

from collections.abc import Iterable

from apt_ds.analysis.fake_batches import Shape
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import GENERATION, LANGUAGE_MODEL
from apt_ds.data.batching import round_up
from apt_ds.data.length_order import Order
from apt_ds.data.rows import Rows
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.training.micro_batches import layout_of
from apt_ds.training.run_data import Data
from apt_ds.training.sampling import calibration_order, sampling


def evaluation_batches(run: RunConfig, data: Data, task_type: str) -> list[Shape]:
    """Shapes that no evaluation batch exceeds: of the held-out set, the dense teacher's pass, and the perplexity."""
    size = run.optim.per_device_eval_batch_size
    batches = [one_per_row(range(i, min(i + size, len(data.held_out)))) for i in range(0, len(data.held_out), size)]
    shapes = [bound(data.held_out, batches, task_type)]
    if run.pruning.dense_teacher and run.pruning.teacher_source == "cache":
        # the pass before the first step takes the longest rows together
        longest = (-data.train.lengths).argsort(kind="stable")[:size].tolist()
        shapes.append(bound(data.train, [one_per_row(longest)], task_type))
    for tokens in list(data.texts.values())[:1]:  # all texts have blocks of one length
        blocks, length = max(1, size // 4), tokens.shape[1]
        shapes.append(Shape(blocks, length, 0, blocks * (length - 1)))
    return shapes


def micro_batches(run: RunConfig, data: Data, world: int, task_type: str) -> Shape:
    """A shape that no micro-batch of training or calibration exceeds in any dimension, on any of `world` ranks."""
    if data.stream is not None:
        shape = stream_bound(run)
    else:
        order, steps = sampling(run, data.train, data.sources, world)
        shape = step_bound(run, data.train, order, steps, world, task_type)
    if data.calibration is None:
        return shape
    rows, sources = data.calibration.rows, data.calibration.sources
    order = calibration_order(run, rows, sources, world)
    scored = step_bound(run, rows, order, run.pruning.calibration_steps, world, task_type)
    return Shape(*map(max, shape, scored))


def step_bound(run: RunConfig, rows: Rows, order: Order, steps: int, world: int, task_type: str) -> Shape:
    """A shape that no micro-batch of the first steps of an order exceeds, on any of `world` ranks."""
    slots = run.optim.gradient_accumulation_steps * world
    batches = []
    for indices in map(order.indices, range(steps)):
        layout = layout_of(run, rows, indices, slots)
        batches += [[[indices[i] for i in row] for row in slot] for slot in layout.slots]
    return bound(rows, batches, task_type)


def repaired_batches(run: RunConfig, data: Data, world: int) -> list[tuple[int, int]]:
    """Rows and tokens of a row of all calibration batches that a repair reads, on the rank with most tokens."""
    steps = -(-run.pruning.repair_examples // run.optim.global_batch(world))
    micro = run.optim.gradient_accumulation_steps
    if data.calibration is None and data.stream is not None:
        shape = stream_bound(run)
        return [(shape[0], shape[1])] * (steps * micro)
    given = data.calibration
    rows, sources = (data.train, data.sources) if given is None else (given.rows, given.sources)
    order = calibration_order(run, rows, sources, world)
    ranks: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    for indices in map(order.indices, range(steps)):
        lengths = rows.lengths[indices].tolist()
        for number, slot in enumerate(layout_of(run, rows, indices, micro * world).slots):
            longest = max(sum(lengths[i] for i in row) for row in slot)
            ranks[number % world].append((len(slot), round_up(longest)))
    return max(ranks, key=lambda batches: sum(rows * tokens for rows, tokens in batches))


def stream_bound(run: RunConfig) -> Shape:
    """A shape that no micro-batch of a language model exceeds, for data whose lengths are unknown."""
    rows, length = run.optim.per_device_train_batch_size, run.data.max_seq_length
    targets = rows * (length - 1)
    if run.data.packing and run.model.one_row:
        return Shape(1, round_up(rows * length), 0, targets)
    return Shape(rows, round_up(length), 0, targets)


def one_per_row(indices: Iterable[int]) -> list[list[int]]:
    """A row for each example."""
    return [[i] for i in indices]


def bound(rows: Rows, batches: list[list[list[int]]], task_type: str) -> Shape:
    """A shape that none of the batches exceeds.

    Args:
        rows: the tokenized examples.
        batches: for each batch the examples of each of its rows, by number.
        task_type: a constant of `config/tasks.py`.
    """
    lengths = rows.lengths.tolist()
    # a task with one answer per row trains no tokens
    task_loss, counts_tokens = TASK_LOSSES[task_type], task_type in (LANGUAGE_MODEL, GENERATION)
    trained, written = [0] * len(lengths), [0] * len(lengths)
    for i in range(len(lengths)) if counts_tokens else ():
        row = rows[i]
        trained[i] = task_loss.loss_denominator(row)
        written[i] = len(row["labels"]) if task_type == GENERATION else 0
    most = Shape(0, 0, 0, 0)
    for batch in batches:
        examples = [i for group in batch for i in group]
        longest = max(sum(lengths[i] for i in group) for group in batch)
        answer, targets = max(written[i] for i in examples), sum(trained[i] for i in examples)
        most = Shape(*map(max, most, (len(batch), round_up(longest), round_up(answer), targets)))
    return most
