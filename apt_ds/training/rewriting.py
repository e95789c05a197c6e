"""The training data of --rewrite_answers: conversations whose last answers the dense model has written.

The answers are kept in the data cache, under a fingerprint of base, data, tokenizer, template and options. Later starts
and resumed runs read the same file. With --max_steps the model answers only the examples that the run trains.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data import cache
from apt_ds.data.conversations import Example, example_source
from apt_ds.data.instructions import every_answer_cut, instruction_recipe
from apt_ds.data.length_order import LengthOrder, Order
from apt_ds.data.mixture_order import MixtureOrder
from apt_ds.data.rewritten import json_lines
from apt_ds.data.rows import Joined, Rows
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval import loading as eval_loading
from apt_ds.eval.generated_answers import GenerationOptions
from apt_ds.eval.rewriting import RewritingFigures, plan_of, rewrite
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives, heartbeat, notices
from apt_ds.training.dense_model import DenseModel
from apt_ds.training.prepared_data import Part, cache_settings, prepared_on_node, whole
from apt_ds.training.run_data import Data, repair_sources, scored_sources
from apt_ds.training.sampling import sampling
from apt_ds.training.sources import joined

FILE = "answers.jsonl"
LIMIT = "--rewrite_max_new_tokens and --max_seq_length"


def with_own_answers(run: RunConfig, base: Base, data: Data) -> Data:
    """The data of a run, with training answers of the dense model. Collective.

    Args:
        run: the options.
        base: the dense model.
        data: the data as it was read.

    Raises:
        UserError: no source has conversations, or the model gives no text to any prompt of a source.
    """
    parts = data.train.parts if isinstance(data.train, Joined) else (data.train,)
    if not any(isinstance(part, TokenizedSet) for part in parts):
        raise UserError(f"--rewrite_answers: --data_path {run.data.data_path!r} holds plain text without answers")
    heartbeat.phase("rewriting answers", limited=False)
    rewriter = Rewriter(run, base, data)
    ends = np.cumsum([0, *map(len, parts)])
    wanted = wanted_rows(run, data.order, data.total_steps, several=len(parts) > 1)
    new_parts: list[Rows] = []
    for number, (source, part) in enumerate(zip(data.sources, parts, strict=True)):
        own = None if wanted is None else wanted[(wanted >= ends[number]) & (wanted < ends[number + 1])] - ends[number]
        # a source of which the run takes nothing stays
        rewritable = isinstance(part, TokenizedSet) and (own is None or len(own))
        new_parts.append(rewriter.rewritten(source.name, part, own) if rewritable else part)  # type: ignore[arg-type]
    rewriter.close()
    figures = asdict(rewriter.figures)
    del figures["tokens"]
    train = joined(new_parts, data.sources)
    order, steps = sampling(run, train, data.sources, collectives.world_size())
    rewritten: Any = figures | {"mean_tokens": rewriter.figures.mean_tokens}
    data = replace(data, train=train, order=order, total_steps=steps, rewritten=rewritten)
    data.calibration_figures, data.repair_figures = scored_sources(run, data), repair_sources(run, data)
    return data


def ungrouped(order: Order) -> Order:
    """The order without groups of similar length, which take the same rows."""
    return order.order if isinstance(order, LengthOrder) else order


def wanted_rows(run: RunConfig, order: Order, steps: int, several: bool) -> np.ndarray | None:
    """The training rows that the run takes, increasing. None: all, or those of a run whose length depends on the rows.

    Args:
        run: the options.
        order: of the rows as they were read.
        steps: of the run.
        several: whether there are several sources. Their shares without weights depend on all of their rows.
    """
    inner = ungrouped(order)
    weighted = isinstance(inner, MixtureOrder)
    if run.optim.max_steps < 1 or (several and not weighted):
        return None
    batch, pruning = order.global_batch, run.pruning
    if (pruning.one_shot or pruning.repairs) and not run.data.calibration_path:
        # calibration, walks and factors read the first steps, of which a short run may have fewer
        walks = pruning.repairs or pruning.score == "obs"
        read = [pruning.calibration_steps if pruning.one_shot else 0]
        read.append(math.ceil(pruning.repair_examples / batch) if walks else 0)
        # factors are compared with 1 on a quarter more steps
        read.append(pruning.scale_steps + max(1, pruning.scale_steps // 4) if pruning.scales else 0)
        steps = max(steps, *read)
    if not weighted and steps * batch >= order.n:
        return None
    return np.unique(np.array([index for step in range(steps) for index in inner.indices(step)], np.int64))


class Answers(NamedTuple):
    """The answers to the chosen examples of a source.

    Attributes:
        lines: conversations as JSON lines.
        figures: those of `RewritingFigures`.
    """

    lines: str
    figures: dict[str, Any]


class Rewriter:
    """Rewrites sources one after the other. The model is loaded once an answer is missing in the cache.

    Attributes:
        figures: of all sources so far.
    """

    def __init__(self, run: RunConfig, base: Base, data: Data) -> None:
        self.run, self.base, self.data = run, base, data
        self.settings = cache_settings(run)
        self.recipe = instruction_recipe(base.tokenizer, run.data.max_seq_length, data.now)
        optim, options = run.optim, run.data
        self.options = GenerationOptions(
            options.rewrite_max_new_tokens, options.rewrite_temperature, optim.seed, optim.per_device_eval_batch_size
        )
        self.figures = RewritingFigures()
        self.fingerprint = collectives.on_main(lambda: eval_loading.fingerprint(base.source))
        self.model = DenseModel(run, base)

    def rewritten(self, name: str, part: TokenizedSet, rows: np.ndarray | None) -> TokenizedSet:
        """A source with new answers. Collective.

        Args:
            name: the source.
            part: its training rows.
            rows: those that the run takes. None: all.
        """
        prepared = prepared_on_node(self.run, lambda: example_source(name), self.recipe)
        numbers = np.arange(len(prepared.examples)) if part.kept is None else part.kept
        chosen = Part(prepared, numbers if rows is None else numbers[rows])
        folder = self._entry(name, chosen)
        answers = prepared_on_node(self.run, lambda: example_source(str(folder / FILE)), self.recipe)
        tokenized = whole(answers).tokenized()
        if not len(tokenized):
            raise every_answer_cut(chosen.examples(), self.base.tokenizer, self.run.data.max_seq_length, self.data.now)
        facts: dict[str, Any] = collectives.on_main(lambda: cache.read_meta(folder)["figures"])
        collectives.barrier()
        if collectives.local_rank() == 0 and cache.is_temporary(folder, self.settings.root()):
            shutil.rmtree(folder, ignore_errors=True)
        figures = RewritingFigures(**facts)
        self.figures += figures
        if collectives.is_main():
            print(f"{name}: {figures.describe()}", file=sys.stderr, flush=True)
            if warning := figures.warning(LIMIT, bool(self.base.tokenizer.chat_template)):
                notices.warn(f"--rewrite_answers: {name}: {warning}")
        tokenized.dropped += part.dropped + figures.dropped
        return tokenized

    def _entry(self, name: str, chosen: Part[Example]) -> Path:
        """The folder of this node's cache with the answers, which this makes where it is absent. Collective.

        Returns:
            The folder, on the first rank of every node. `Path()` on the others.
        """
        is_first = collectives.local_rank() == 0
        folder = collectives.on_each_node(lambda: self._folder(name, chosen.numbers)) or Path()
        exists = is_first and folder.is_dir()
        is_whole = exists and not self.settings.overwrite and _is_whole(folder)
        states = collectives.gather_objects((is_first, is_whole))
        ranks_with_answers = [rank for rank, (_, has_answers) in enumerate(states) if has_answers]
        ranks_without_answers = [rank for rank, (first, has_answers) in enumerate(states) if first and not has_answers]
        if not ranks_without_answers:
            return folder
        answers = self._answers(name, chosen, folder, ranks_with_answers)
        # a folder that exists and is not used is damaged, or is to be made again
        stored = collectives.on_each_node(lambda: folder if is_whole else self._store(folder, answers, exists))
        return stored or folder

    def _folder(self, name: str, numbers: np.ndarray) -> Path:
        """Where this node's cache has the answers to the examples of these numbers."""
        return self.settings.root() / cache.key_of("answers", example_source(name).identity(), *self._facts(numbers))

    def _answers(self, name: str, chosen: Part[Example], folder: Path, ranks_with_answers: list[int]) -> Answers:
        """The answers that a rank has in its `folder`, or else new ones of the model. Collective."""
        if not ranks_with_answers:
            return self._write(name, chosen.examples())
        source = ranks_with_answers[0]
        own = _read(folder) if collectives.rank() == source else Answers("", {})
        return collectives.gather_objects(own)[source]

    def _store(self, folder: Path, answers: Answers, replaces: bool) -> Path:
        """Write answers to `folder`. Returns it, or a temporary folder if the cache cannot be written."""

        def fill(partial: Path) -> dict[str, Any]:
            (partial / FILE).write_text(answers.lines, "utf-8")
            return {"figures": answers.figures}

        return cache.write_entry(self.settings.root(), folder.name, fill, replaces)

    def _facts(self, numbers: np.ndarray) -> list[Any]:
        """What decides the answers, besides the data. The batch size changes no more than rounding."""
        run, options = self.run, self.options
        sampled = [options.temperature, options.seed] if options.temperature else []
        kept = hashlib.sha256(numbers.astype(np.int64).tobytes()).hexdigest()
        model = [self.fingerprint, run.model.base_bits, run.optim.bf16, run.optim.fp16]
        return [dict(self.recipe.options), model, options.max_new_tokens, sampled, kept]

    def _write(self, name: str, examples: Sequence[Example]) -> Answers:
        """New answers of the model. Collective."""
        tokenizer, length = self.base.tokenizer, self.run.data.max_seq_length
        plan = plan_of(examples, tokenizer, length, self.options, self.data.now)
        if collectives.is_main():
            print(f"{name}: {plan.describe(self.options)}", file=sys.stderr, flush=True)
        rewritten, figures = rewrite(self.model.runner(), tokenizer, plan, self.options)
        if not rewritten:
            raise UserError(f"--rewrite_answers: the model gives no text to any prompt of {name}: give another model")
        return Answers(json_lines(rewritten), asdict(figures))

    def close(self) -> None:
        """Free the model."""
        self.model.close()


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache has answers as they were written. Warns if not."""
    try:
        return "figures" in cache.read_meta(folder)
    except cache.DamagedError as error:
        notices.warn(f"the cached answers {folder} are damaged ({error}): they are written again")
        return False


def _read(folder: Path) -> Answers:
    """The answers of a whole folder of the cache."""
    return Answers((folder / FILE).read_text("utf-8"), cache.read_meta(folder)["figures"])
