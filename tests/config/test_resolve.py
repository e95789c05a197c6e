"""Resolution order, conversion and the one-line errors of the configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from deepspeed.launcher.runner import parse_args

from apt_ds.config.errors import UserError
from apt_ds.config.methods import METHODS
from apt_ds.config.presets import PRESETS
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import OPTIONS, RunConfig


@pytest.fixture
def required(tmp_path: Path) -> list[str]:
    """Arguments without which no run starts, on top of the preset."""
    (tmp_path / "ds.json").write_text("{}", encoding="utf-8")
    return ["--deepspeed", str(tmp_path / "ds.json")]


@pytest.fixture
def named(required: list[str]) -> list[str]:
    """The required arguments with a model and data of the user's own, so that no preset speaks."""
    return [*required, "--model_name_or_path", "folder", "--data_path", "rows.jsonl"]


def message(argv: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        resolve(argv)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def test_no_model_means_quickstart(required: list[str]) -> None:
    config = resolve(required)
    assert config.source.preset == "quickstart"
    assert {name: config.flag(name) for name in PRESETS["quickstart"]()} == PRESETS["quickstart"]()


def test_a_model_means_defaults(named: list[str]) -> None:
    assert resolve(named) == RunConfig(deepspeed=named[1], model_name_or_path="folder", data_path="rows.jsonl")


def test_each_source_overrides_the_one_before(required: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 3e-4\nsparsity: 0.4\nrank: 4\nadapter_targets: [q, o]\n", encoding="utf-8")
    argv = ["--preset", "llama2-7b-alpaca", "--config", str(file), "--sparsity", "0.5", *required]
    config = resolve(argv)
    assert config.optim.adam_beta2 == 0.999  # default
    assert config.optim.num_train_epochs == 15.0  # preset
    assert (config.optim.learning_rate, config.adapter.rank, config.targets) == (3e-4, 4, ("q", "o"))  # file
    assert config.pruning.sparsity == 0.5  # command line


def test_a_file_may_name_the_model_or_the_preset(required: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"model_name_or_path": "folder", "data_path": "rows"}), encoding="utf-8")
    assert resolve(["--config", str(file), *required]).source.preset == ""
    file.write_text(json.dumps({"preset": "llama2-13b-alpaca", "rank_budget": 2}), encoding="utf-8")
    config = resolve(["--config", str(file), *required])
    assert (config.model.model_name_or_path, config.adapter.rank_budget) == ("meta-llama/Llama-2-13b-hf", 2.0)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_typed(name: str, required: list[str]) -> None:
    values = PRESETS[name]()
    assert {key: type(value) for key, value in values.items()} == {key: type(OPTIONS[key].default) for key in values}
    assert resolve(["--preset", name, *required]).source.preset == name
    assert "Command:" in str(PRESETS[name].__doc__)


@pytest.mark.parametrize("preset", [[], ["--preset", "llama2-7b-alpaca", "--adam_epsilon", "1e-9"]])
def test_saved_configuration_reads_back(preset: list[str], required: list[str], tmp_path: Path) -> None:
    config = resolve([*preset, "--local_rank=1", *required])
    config.save(tmp_path / "config.yaml")
    again = resolve(["--config", str(tmp_path / "config.yaml")])
    assert again == config.replace(local_rank=-1)
    assert "local_rank" not in yaml.safe_load(config.to_yaml())


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--bf16"], True), (["--bf16", "true"], True), (["--bf16=False"], False), ([], False)],
)
def test_a_flag_without_a_value_is_true(words: list[str], value: bool, named: list[str]) -> None:
    assert resolve([*words, *named]).optim.bf16 is value


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], "none"),
        (["--distill"], "layers"),
        (["--distill", "true"], "layers"),
        (["--distill", "False"], "none"),
        (["--distill", "logits"], "logits"),
    ],
)
def test_a_switch_of_a_choice_means_one_of_its_values(words: list[str], value: str, named: list[str]) -> None:
    assert resolve([*named, "--pruning", "gradual", *words]).pruning.distill == value


def test_a_file_may_switch_a_choice_on(named: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("pruning: gradual\ndistill: true\n", encoding="utf8")
    assert resolve([*named, "--config", str(tmp_path / "run.yaml")]).pruning.distill == "layers"


def test_launcher_rank_is_taken(named: list[str]) -> None:
    assert resolve(["--local_rank=3", *named]).distributed.local_rank == 3


def test_lists_come_in_their_own_order(named: list[str]) -> None:
    config = resolve([*named, "--prune_blocks", "neurons, heads", "--adapter_targets", "down,q"])
    assert config.pruning.block_kinds == ("heads", "neurons")
    assert config.targets == ("q", "down")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--sparsity 1", ["--sparsity 1.0", "at least 0 and below 1"]),
        ("--sparsity nan", ["--sparsity nan"]),
        ("--mask_step -0.1", ["--mask_step -0.1", "at least 0 and at most 1"]),
        ("--mask_step 1.5", ["--mask_step 1.5", "at least 0 and at most 1"]),
        ("--kurtosis_weight -2", ["--kurtosis_weight -2.0", "at least 0, or -1"]),
        ("--kurtosis_weight nan", ["--kurtosis_weight nan", "at least 0, or -1"]),
        ("--recipe papers", ["--recipe 'papers'", "default, paper"]),
        ("--prune_scope adapter", ["--prune_scope 'adapter'", "all, adapted"]),
        ("--calibration_average median", ["--calibration_average 'median'", "mean, moving"]),
        ("--learning_rate 0", ["--learning_rate 0.0", "above 0"]),
        ("--learning_rate inf", ["--learning_rate inf"]),
        ("--seed 1.5", ["--seed '1.5'", "a whole number"]),
        ("--bf16 maybe", ["--bf16 'maybe'", "true or false"]),
        ("--pruning often", ["--pruning 'often'", "pretuning, gradual, posttuning, none"]),
        ("--prune_blocks heads,layers", ["--prune_blocks 'heads,layers'", "heads, neurons, hidden"]),
        ("--prune_blocks heads,heads", ["--prune_blocks", "nothing twice"]),
        ("--adapter_targets=", ["--adapter_targets ''"]),
        ("--max_steps 0", ["--max_steps 0", "at least 1, or -1"]),
        ("--max_steps", ["--max_steps", "expected one argument"]),
        ("--bf16 --fp16", ["--bf16", "--fp16"]),
        ("--rank 65", ["--rank 65", "--max_rank 64"]),
        ("--data_path=", ["--data_path is missing"]),
        ("--deepspeed none.json", ["--deepspeed 'none.json'", "ds_configs/zero3.json"]),
        ("--lerning_rate=1", ["--lerning_rate is", "--learning_rate"]),
        ("--num_train_epoch 1", ["--num_train_epoch is", "--num_train_epochs"]),
        ("stray", ["stray is an unknown option"]),
        ("--preset quick", ["--preset 'quick'", "quickstart, llama2-7b-alpaca"]),
        ("--config run.toml", ["run.toml", ".yaml"]),
        ("--config none.yaml", ["none.yaml", "cannot be read"]),
    ],
)
def test_mistakes_name_flag_value_and_what_is_allowed(words: str, parts: list[str], named: list[str]) -> None:
    text = message([*named, *words.split()])
    assert [part for part in parts if part not in text] == []


def table(config: RunConfig) -> dict[str, object]:
    return config.flags()


PAPER = {
    "teacher": "unpruned",
    "layer_match": "step",
    "salience_product": "batch",
    "kurtosis": "literal",
    "kurtosis_weight": 1.0,
    "calibration_average": "moving",
    "prune_blocks": "heads,neurons,hidden",
    "structure": "adaptive",
    "align": 1,
    "mask_step": 0.01,
    "optimizer_state": "reset",
}
# what the default recipe adds for language models that are cut before they tune, and the paper does not have
ADDED = {"repair": ("ls", "none")}


def as_in_the_paper(options: dict[str, object]) -> dict[str, object]:
    """What the paper's recipe makes of the options of the default one."""
    removed = {name: without for name, (added, without) in ADDED.items() if options[name] == added}
    return options | PAPER | removed | {"recipe": "paper"}


@pytest.mark.parametrize("preset", ["", *PRESETS])
def test_the_papers_recipe_sets_its_choices_and_nothing_else(preset: str, named: list[str]) -> None:
    words = [*named[:2], "--preset", preset] if preset else named
    plain = table(resolve(words))
    assert table(resolve([*words, "--recipe", "paper"])) == as_in_the_paper(plain)
    assert table(resolve([*words, "--recipe", "default"])) == plain


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_and_any_method_agree(name: str, named: list[str]) -> None:
    words = [*named, "--method", name]
    assert table(resolve([*words, "--recipe", "paper"])) == as_in_the_paper(table(resolve(words)))


@pytest.mark.parametrize(
    ("words", "repair"),
    [
        ([], "ls"),
        (["--method", "apt_fixed_ranks"], "ls"),
        (["--repair", "none"], "none"),
        (["--recipe", "paper"], "none"),
        (["--pruning", "gradual"], "none"),
        (["--pruning", "posttuning"], "none"),
        (["--sparsity", "0"], "none"),
        (["--task", "sst2"], "none"),
        (["--method", "lora_prune"], "none"),
        # a repair would contradict the options
        (["--score", "fisher"], "none"),
        (["--score", "flap"], "none"),
        (["--scale_steps", "4"], "none"),
    ],
)
def test_a_language_model_that_is_cut_first_is_repaired(words: list[str], repair: str, named: list[str]) -> None:
    assert resolve([*named, *words]).pruning.repair == repair


@pytest.mark.parametrize("source", ["command line", "file"])
def test_stated_options_win_over_the_recipe(source: str, required: list[str], tmp_path: Path) -> None:
    stated = {
        "align": 64,
        "kurtosis": "normalized",
        "optimizer_state": "carry",
        "mask_step": 0.05,
        "prune_blocks": "heads",
    }
    words = [*required, "--preset", "roberta-sst2", "--recipe", "paper"]
    if source == "file":
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(stated), encoding="utf-8")
        words += ["--config", str(tmp_path / "run.yaml")]
    else:
        words += [word for name, value in stated.items() for word in (f"--{name}", str(value))]
    expected = table(resolve([*required, "--preset", "roberta-sst2"])) | PAPER | stated | {"recipe": "paper"}
    assert table(resolve(words)) == expected


def test_a_recipe_shows_in_the_saved_configuration_and_reads_back(required: list[str], tmp_path: Path) -> None:
    config = resolve([*required, "--preset", "t5-cnndm", "--recipe", "paper", "--align", "16"])
    config.save(tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert {name: saved[name] for name in PAPER} == PAPER | {"align": 16} and saved["recipe"] == "paper"
    assert resolve(["--config", str(tmp_path / "config.yaml")]) == config
    assert resolve(["--config", str(tmp_path / "config.yaml"), "--recipe", "paper"]) == config


def test_another_recipe_than_that_of_a_saved_configuration_is_refused(required: list[str], tmp_path: Path) -> None:
    """Every option of the file would win over the recipe, and nothing would say so."""
    resolve([*required, "--preset", "t5-cnndm"]).save(tmp_path / "config.yaml")
    text = message(["--config", str(tmp_path / "config.yaml"), "--recipe", "paper"])
    assert "--recipe paper contradicts" in text and "config.yaml" in text and "default" in text


def test_rank_above_the_limit_is_fine_without_growth(named: list[str]) -> None:
    assert resolve([*named, "--rank", "65", "--rank_growth", "none"]).adapter.rank == 65


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("lerning_rate: 1", ["'lerning_rate'", "did you mean learning_rate"]),
        ("local_rank: 1", ["'local_rank'"]),
        ("1: 2", ["1 is an unknown option"]),
        ("sparsity: [1]", ["sparsity [1]", "a number"]),
        ("rank: true", ["rank True", "a whole number"]),
        ("rank: 8.0", ["rank 8.0", "a whole number"]),
        ("bf16: 1", ["bf16 1", "true or false"]),
        ("data_path:", ["data_path None", "text"]),
        ("- rank", ["has no options"]),
        ("", ["has no options"]),
        ("rank: [8", ["cannot be read"]),
    ],
)
def test_mistakes_in_a_file_name_the_file(content: str, parts: list[str], named: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content, encoding="utf-8")
    text = message([*named, "--config", str(file)])
    assert [part for part in ["run.yaml", *parts] if part not in text] == []


def test_a_missing_deepspeed_json_is_named(named: list[str]) -> None:
    assert "--deepspeed is missing" in message(named[2:])


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        resolve(["--help"])
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert [name for name in ("config", *OPTIONS) if f"--{name} " not in page] == []
    assert "local_rank" not in page
    assert [title for title in ("model:", "optim:", "pruning:", "adapter:") if title not in page] == []


@pytest.mark.parametrize("name", ["config", "local_rank", *OPTIONS])
def test_the_deepspeed_launcher_lets_options_through(name: str) -> None:
    """It takes for its own, or rejects, a script's option that abbreviates one of its own."""
    words = [f"--{name}", "1", f"--{name}=1"]
    assert parse_args(["launchers/train.py", *words]).user_args == words


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().adapter.rank = 4
