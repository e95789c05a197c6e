"""The run's configuration: eight groups of options, their checks, and their flat form for files and command lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from apt_ds.config.errors import UserError
from apt_ds.config.nearest import suggest
from apt_ds.config.option_groups import (
    AUTO,
    PROJECTIONS,
    STOCK,
    AdapterOptions,
    DataOptions,
    DistributedOptions,
    ModelOptions,
    OptimOptions,
    OutputOptions,
    PruningOptions,
    SourceOptions,
)
from apt_ds.config.option_types import OneOf, Value, spelled_out, split_commas
from apt_ds.config.presets import METHODS, PRESETS, RECIPES
from apt_ds.config.tasks import INSTRUCTIONS

REQUIRED = ("model_name_or_path", "data_path", "output_dir", "deepspeed")
SECRETS = ("hub_token",)  # no file, tracker or message gets their values


@dataclass(frozen=True, init=False)
class RunConfig:
    """Everything a run decides, frozen. `RunConfig(sparsity=0.3, ...)` takes flags; fields are groups of options.

    A flag that is not given takes its value from `method`, else `recipe`, else `preset`, else its default.
    The constructor checks names only: `check` checks values. `config.resolve.resolve` makes one from a command line.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    pruning: PruningOptions = field(default_factory=PruningOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    distributed: DistributedOptions = field(default_factory=DistributedOptions)

    def __init__(self, **flags: Any) -> None:
        """Distribute flags over the groups.

        Raises:
            TypeError: an unknown flag. The message names the nearest known one.
        """
        unknown = sorted(flags.keys() - PLACES.keys())
        if unknown:
            raise TypeError(f"RunConfig has no option {unknown[0]!r}{suggest(unknown[0], PLACES)}")
        flags = _implied(flags) | flags
        flags = {name: spelled_out(OPTIONS[name], value) if name in OPTIONS else value for name, value in flags.items()}
        for group in fields(RunConfig):
            own = {
                place.name: flags[flag] for flag, place in PLACES.items() if place.group == group.name and flag in flags
            }
            object.__setattr__(self, group.name, GROUPS[group.name](**own))

    def flag(self, name: str) -> Any:
        """The value of a flag, by its name on the command line."""
        group, attribute = PLACES[name]
        return getattr(getattr(self, group), attribute)

    def flags(self) -> dict[str, Value]:
        """The values of all flags that users set, by their names on the command line. Secrets are left out."""
        return {name: self.flag(name) for name in OPTIONS if name not in SECRETS}

    def replace(self, **flags: Any) -> RunConfig:
        """The same configuration with other values of some flags."""
        return RunConfig(**({name: self.flag(name) for name in PLACES} | flags))

    @property
    def targets(self) -> tuple[str, ...]:
        """The projections that get an adapter: some of q, k, v, o, gate, up, down, in this order."""
        named = split_commas(self.adapter.adapter_targets)
        if named == [AUTO]:
            named = ["q", "v"] if self.data.task == INSTRUCTIONS else ["q", "v", "up"]
        return tuple(name for name in PROJECTIONS if name in named)

    def check(self) -> None:
        """Raise `UserError` for the first value that is not allowed or contradicts another."""
        preset, method = self.source.preset, self.source.method
        if preset and preset not in PRESETS:
            raise UserError(f"--preset {preset!r} is not allowed: give {OneOf(PRESETS)}{suggest(preset, PRESETS)}")
        for name, value in METHODS.get(method, {}).items():
            if self.flag(name) != spelled_out(OPTIONS[name], value):
                raise UserError(
                    f"--{name} {self.flag(name)} contradicts --method {method}, which means --{name} {value}"
                )
        self._check_allowed()
        for name in REQUIRED:
            if not self.flag(name):
                raise UserError(f"--{name} is missing: give {OPTIONS[name].metadata['help']}")
        if not Path(self.distributed.deepspeed).is_file():
            raise UserError(
                f"--deepspeed {self.distributed.deepspeed!r} is not a file: "
                f"give {OPTIONS['deepspeed'].metadata['help']}"
            )
        for problem in self._contradictions():
            raise UserError(problem)

    def check_options(self) -> None:
        """As `check`, for a configuration that names no model, data and output folder."""
        self._check_allowed()
        for problem in self._contradictions():
            raise UserError(problem)

    def _check_allowed(self) -> None:
        for name, spec in OPTIONS.items():
            allowed, value = spec.metadata["allowed"], self.flag(name)
            if allowed is not None and not allowed.holds(value):
                raise UserError(f"--{name} {value!r} is not allowed: give {allowed}")

    def _contradictions(self) -> Iterator[str]:
        """One line for each pair of options that contradict each other."""
        optim, pruning, adapter, data = self.optim, self.pruning, self.adapter, self.data
        if optim.max_steps == 0:
            yield "--max_steps 0 is not allowed: give at least 1, or -1 for --num_train_epochs"
        if optim.bf16 and optim.fp16:
            yield "--bf16 true and --fp16 true exclude each other: give at most one"
        if optim.trainable == "all" and adapter.grows:
            yield (
                f"--train all requires --rank_growth none (got {adapter.rank_growth}), as the run has no adapters: "
                "--method full says both"
            )
        if optim.trainable == "all" and pruning.prunes and pruning.prune_scope == "adapted":
            yield "--prune_scope adapted requires --train adapters (got all): the run has no adapters"
        if optim.trainable == "all" and (self.output.export_adapters or adapter.init_adapters):
            name = "export_adapters" if self.output.export_adapters else "init_adapters"
            yield f"--{name} requires --train adapters (got all): the run has no adapters"
        if adapter.init_adapters and pruning.prunes and pruning.score == "taylor":
            yield (
                "--init_adapters does not support --score taylor, which scores before the adapters exist: "
                "give --score salience"
            )
        if pruning.mode == "gradual" and (pruning.score in ("fisher", "taylor", "obs") or pruning.scores_inputs):
            yield f"--pruning gradual does not support --score {pruning.score}: give --score salience or random"
        if pruning.prunes and pruning.score == "obs" and "hidden" in pruning.block_kinds:
            yield (
                f"--score obs does not support --prune_blocks {pruning.prune_blocks}, as it scores heads and neurons "
                "only: leave hidden out, or give --score salience"
            )
        if pruning.score == "l0" and pruning.mode not in ("gradual", "none"):
            yield f"--score l0 requires --pruning gradual (got {pruning.mode}): the gates are trained with the model"
        if pruning.learns_gates and pruning.pruning_start:
            yield f"--score l0 does not support --pruning_start {pruning.pruning_start:g}: leave it out"
        if pruning.allow_empty_layers and pruning.structure != "adaptive":
            yield f"--allow_empty_layers requires --structure adaptive (got {pruning.structure}), as layers then differ"
        if pruning.repairs and pruning.score == "fisher":
            yield "--repair ls does not support --score fisher, which has a fit of its own: give --repair none"
        if pruning.repairs and pruning.gradual:
            yield (
                "--repair ls requires --pruning pretuning or posttuning (got gradual): masks have removed the blocks "
                "before a gradual cut, and the model has learnt to do without them"
            )
        for flag, given in (("--allocate kl", pruning.allocates), ("--scale_steps", pruning.scales)):
            if given and not pruning.one_shot:
                yield f"{flag} requires --pruning pretuning or posttuning (got {pruning.mode}): others have no one cut"
        if pruning.scales and pruning.score in ("fisher", "taylor"):
            reason = "fits factors of its own" if pruning.score == "fisher" else "trains every weight before the cut"
            yield f"--scale_steps does not support --score {pruning.score}, which {reason}: give --scale_steps 0"
        if pruning.scales and pruning.repairs:
            yield (
                f"--scale_steps does not support --repair {pruning.repair}, which changes the weights after the "
                "factors are learnt: give --scale_steps 0 or --repair none"
            )
        if pruning.self_distills and pruning.mode != "gradual":
            yield (
                f"--distill layers requires --pruning gradual (got {pruning.mode}): its teacher exists only during "
                "gradual pruning. Language models may give --distill logits"
            )
        if pruning.dense_teacher and data.task != INSTRUCTIONS:
            yield f"--distill logits does not support --task {data.task}: give --task instructions, or --distill layers"
        if pruning.dense_teacher and data.streaming and pruning.teacher_source == "cache":
            yield (
                "--distill logits with --teacher_source cache does not support --streaming true: the dense model reads "
                "the training data before the first step. Give --teacher_source live"
            )
        if pruning.teacher_cache and not pruning.dense_teacher:
            yield f"--teacher_cache requires --distill logits (got {pruning.distill}): no other teacher has a cache"
        if pruning.teacher_cache and pruning.teacher_source == "live":
            yield "--teacher_cache requires --teacher_source cache (got live): a live teacher writes nothing"
        if pruning.mode == "gradual" and pruning.pruning_start + pruning.pruning_phase > 1 + 1e-9:
            yield (
                f"--pruning_start {pruning.pruning_start:g} and --pruning_phase {pruning.pruning_phase:g} exceed the "
                "run: give at most 1 together"
            )
        if pruning.mode == "posttuning" and pruning.score == "taylor":
            yield "--pruning posttuning does not support --score taylor: give --score fisher or salience"
        if data.packing and data.task != INSTRUCTIONS:
            yield f"--packing true does not support --task {data.task}: only causal language models pack examples"
        if data.packing and pruning.score == "fisher":
            yield "--packing true does not support --score fisher, which needs one row per example"
        if "none" in split_commas(self.output.report_to) and self.output.trackers:
            yield f"--report_to {self.output.report_to} is not allowed: give none, or the names of trackers"
        if pruning.prunes and not pruning.block_kinds:
            yield f"--prune_blocks hidden does not support --score {pruning.score}, which scores heads and neurons only"
        if data.packing and data.group_by_length:
            yield "--group_by_length requires --packing false: packing fills rows with examples of any length"
        if data.streaming and data.task != INSTRUCTIONS:
            yield f"--streaming true does not support --task {data.task}: only language models read streams"
        if data.streaming and optim.max_steps < 1:
            yield f"--streaming true requires --max_steps of at least 1 (got {optim.max_steps}): a stream has no length"
        if data.streaming and data.group_by_length:
            yield "--streaming true does not support --group_by_length true: lengths are unknown; give --packing true"
        if data.rewrite_answers and data.task != INSTRUCTIONS:
            yield f"--rewrite_answers does not support --task {data.task}: only language models write answers"
        if data.rewrite_answers and data.streaming:
            yield "--rewrite_answers does not support --streaming: it needs the examples before training starts"
        if data.rewrite_answers and adapter.init_adapters:
            yield "--rewrite_answers does not support --init_adapters: answers come from the base without adapters"
        if data.calibration_path and not pruning.one_shot:
            yield (
                f"--calibration_path requires --pruning pretuning or posttuning (got {pruning.mode}): "
                "other runs score their training steps, or nothing"
            )
        reads = pruning.repairs or pruning.allocates or pruning.scales
        if data.calibration_path and pruning.score == "random" and not reads:
            yield (
                "--calibration_path requires a score of data (got --score random), or --repair, --allocate kl or "
                "--scale_steps"
            )
        if self.output.export_format == STOCK and pruning.prunes and pruning.structure == "adaptive":
            yield (
                "--export_format stock does not support --structure adaptive, as layers then differ; give "
                "--export_format padded, which fills the smaller layers up with zeros"
            )
        if adapter.grows and adapter.rank > adapter.max_rank:
            yield f"--rank {adapter.rank} is not allowed: give at most --max_rank {adapter.max_rank}"

    def to_yaml(self) -> str:
        """The options as YAML, which `--config` reads back to the same configuration."""
        return yaml.safe_dump(self.flags(), sort_keys=False)

    def save(self, path: str | Path) -> None:
        """Write `to_yaml()` to `path`. Raises OSError."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")


def _implied(flags: dict[str, Any]) -> dict[str, Value]:
    """The values that the preset, the recipe and the method among `flags` imply. A later one takes precedence."""
    preset = PRESETS.get(flags.get("preset", ""))
    recipe, method = (flags.get(name, default) for name, default in (("recipe", "default"), ("method", "apt")))
    return (preset() if preset else {}) | RECIPES.get(recipe, {}) | METHODS.get(method, {})


class Place(NamedTuple):
    """Where the value of a flag is: a field `name` of the group `group`."""

    group: str
    name: str


GROUPS: dict[str, Any] = {spec.name: spec.default_factory for spec in fields(RunConfig)}
PLACES: dict[str, Place] = {
    spec.metadata.get("flag") or spec.name: Place(group, spec.name)
    for group, options in GROUPS.items()
    for spec in fields(options)
}
# what users set: flag to its field, whose metadata has help and allowed values
OPTIONS: dict[str, Field[Any]] = {
    spec.metadata["flag"] or spec.name: spec for options in GROUPS.values() for spec in fields(options) if spec.metadata
}
