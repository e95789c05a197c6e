"""The run's configuration: eight groups of options, their checks, and their flat form for files and command lines."""

from __future__ import annotations

import os
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from apt_ds.config.contradictions import contradictions
from apt_ds.config.errors import UserError
from apt_ds.config.methods import METHODS, RECIPES, language_model_cut
from apt_ds.config.nearest import suggest
from apt_ds.config.option_groups import DataOptions, DistributedOptions, ModelOptions, OptimOptions, SourceOptions
from apt_ds.config.option_types import OneOf, Value, converted, spelled_out, split_commas
from apt_ds.config.output_options import OutputOptions
from apt_ds.config.paths import check_path
from apt_ds.config.presets import PRESETS
from apt_ds.config.pruning_options import AUTO, PROJECTIONS, AdapterOptions, PruningOptions
from apt_ds.config.tasks import INSTRUCTIONS

REQUIRED = ("model_name_or_path", "data_path", "output_dir", "deepspeed")
# each value is the path of one file or folder, or a hub name
PATHS = (
    *("model_name_or_path", "output_dir", "deepspeed", "mmlu_path", "init_adapters", "resume_from_checkpoint"),
    *("teacher_cache", "data_cache_dir", "logging_dir"),
)
SECRETS = ("hub_token",)  # no file, tracker or message gets their values


@dataclass(frozen=True, init=False)
class RunConfig:
    """Everything a run decides, frozen. `RunConfig(sparsity=0.3, ...)` takes flags. Fields are groups of options.

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
            UserError: a value of another type, which does not stand for one of the option's.
        """
        unknown = sorted(flags.keys() - PLACES.keys())
        if unknown:
            raise TypeError(f"RunConfig has no option {unknown[0]!r}{suggest(unknown[0], PLACES)}")
        flags = _converted(flags)
        flags = _converted(_implied(flags)) | flags
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
                raise UserError(f"--{name} is missing. Give {OPTIONS[name].metadata['help']}")
        for name in PATHS:
            check_path(f"--{name}", self.flag(name), "give a shorter path")
        if not os.path.isfile(self.distributed.deepspeed):
            raise UserError(
                f"--deepspeed {self.distributed.deepspeed!r} is not a file: "
                f"give {OPTIONS['deepspeed'].metadata['help']}"
            )
        for problem in contradictions(self):
            raise UserError(problem)

    def check_options(self) -> None:
        """As `check`, for a configuration that names no model, data and output folder."""
        self._check_allowed()
        for problem in contradictions(self):
            raise UserError(problem)

    def _check_allowed(self) -> None:
        for name, spec in OPTIONS.items():
            allowed, value = spec.metadata["allowed"], self.flag(name)
            if allowed is not None and not allowed.holds(value):
                raise UserError(f"--{name} {value!r} is not allowed: give {allowed}")

    def to_yaml(self) -> str:
        """The options as YAML, which `--config` reads back to the same configuration."""
        return yaml.safe_dump(self.flags(), sort_keys=False)

    def save(self, path: str | Path) -> None:
        """Write `to_yaml()` to `path`. Raises OSError."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")


def _converted(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags, those that users set in the types of their options."""
    return {
        name: converted(f"--{name}", OPTIONS[name], value) if name in OPTIONS else value
        for name, value in flags.items()
    }


def _implied(flags: dict[str, Any]) -> dict[str, Value]:
    """The values that the preset, the recipe and the method among `flags` imply. A later one takes precedence."""
    preset = PRESETS.get(flags.get("preset", ""))
    recipe, method = (flags.get(name, default) for name, default in (("recipe", "default"), ("method", "apt")))
    implied = (preset() if preset else {}) | RECIPES.get(recipe, {}) | METHODS.get(method, {})
    if recipe != "default":
        return implied
    known = implied | flags
    return language_model_cut(lambda name: known.get(name, OPTIONS[name].default)) | implied


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
