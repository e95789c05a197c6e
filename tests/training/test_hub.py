"""Uploads to a stand-in of the hub: it gets the folder as it is. Mistakes end the run before its first step."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from apt_ds.commands import push
from apt_ds.config.errors import UserError
from apt_ds.training.hub import Destination, check_destination, upload
from apt_ds.training.trackers.background import short_reason
from tests.support.hub_server import READ_TOKEN, TOKEN, USER, Hub, hub_server
from tests.support.launcher import GRADUAL, Place, Run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, which this process takes for the hub. Nobody is logged in."""
    with hub_server() as server:
        # the client has read the environment when it was imported
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def words(place: Place, output: Path, *more: str) -> list[str]:
    short = ["--max_steps", "2", "--report", "false", "--eval_size", "2", "--structure", "adaptive"]
    return place.words(output, *GRADUAL, *short, "--push_to_hub", *more)


def test_a_run_uploads_its_folder(place: Place, tmp_path: Path, run: Run, hub: Hub) -> None:
    ended = run(words(place, tmp_path / "small", "--hub_token", TOKEN, "--hub_private_repo"))
    assert ended.status == 0, ended.err
    name = f"{USER}/small"
    assert hub.files == {name: contents(tmp_path / "small" / "model")} and hub.private == {name: True}
    assert hub.large and "README.md" in hub.files[name]
    assert f"uploaded: {hub.address}/{name}" in ended.out
    card = ModelCard(hub.files[name]["README.md"].decode())
    assert f'from_pretrained("{name}"' in card.text
    ours = [request for request in hub.requests if "agent-harnesses" not in request]
    assert ours[:2] == ["GET /api/whoami-v2", "POST /api/repos/create"] and ours.count(ours[0]) == 1
    written = [
        path for path in (tmp_path / "small").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]
    assert written == [] and TOKEN not in ended.out + ended.err


def test_a_failed_upload_says_how_to_do_it_later(
    place: Place,
    tmp_path: Path,
    run: Run,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The run itself has succeeded. The command that the line names then does it."""
    hub.broken = "/commit/"
    output = tmp_path / "it is small"
    ended = run(words(place, output, "--hub_token", TOKEN, "--hub_model_id", "small"))
    assert ended.status == 0 and (output / "summary.json").is_file()
    (line,) = [line for line in ended.err.splitlines() if "its model was not uploaded" in line]
    assert "not allowed to write" in line
    command = shlex.split(line.partition("Later: ")[2])
    assert command[:3] == ["python", "-m", "apt_ds.commands.push"]
    hub.broken = ""
    monkeypatch.setattr(sys, "argv", [*command[2:], "--hub_token", TOKEN])
    push.main()
    assert hub.files == {f"{USER}/small": contents(output / "model")}
    assert f"uploaded: {hub.address}/{USER}/small" in capfd.readouterr().out


def folder_with(folder: Path, **files: str) -> Path:
    (folder / "model").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / "model" / name.replace("__", ".")).write_text(text)
    return folder


def test_what_an_earlier_upload_left_is_replaced(tmp_path: Path, hub: Hub) -> None:
    """Old shards would be read instead of the new file. Other files of the repository stay."""
    hub.files["a/b"] = {"model-00001-of-00002.safetensors": b"old", "config.json": b"old", "picture.png": b"mine"}
    hub.private["a/b"] = False
    folder = folder_with(tmp_path, config__json="{}", model__safetensors="x" * 3000) / "model"
    assert upload(folder, Destination("a/b", False, TOKEN)) == f"{hub.address}/a/b"
    assert hub.files["a/b"] == {**contents(folder), "picture.png": b"mine"}


MISTAKES = {
    "no token": (["--hub_model_id", "a/b"], "needs a token: run `hf auth login`, set HF_TOKEN or give --hub_token"),
    "a wrong token": (["--hub_model_id", "a/b", "--hub_token", "hf_wrong"], "the hub refuses the token"),
    "a wrong name": (["--hub_model_id", "a/b/c", "--hub_token", TOKEN], "'a/b/c' is not a name of the hub"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_the_run_before_anything_is_written(
    mistake: str, place: Place, tmp_path: Path, run: Run, hub: Hub
) -> None:
    more, text = MISTAKES[mistake]
    ended = run(words(place, tmp_path / "out", *more))
    assert ended.status == 2 and len(ended.mistakes) == 1 and text in ended.mistakes[0]
    assert not (tmp_path / "out").exists() and hub.files == {} and "hf_wrong" not in ended.err


def test_a_name_that_the_licence_forbids(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(UserError, match="licence of the base model demands a name that begins with 'Llama'"):
        check_destination("me/mine", "out", False, TOKEN, "Llama")
    assert check_destination("me/Llama-mine", "out", False, TOKEN, "Llama").repository == "me/Llama-mine"


def test_the_licence_decides_the_name_in_a_later_upload_too(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_with(tmp_path / "out", config__json="{}", README__md="---\nlicense: llama3.1\n---\n")
    monkeypatch.setattr(sys, "argv", ["push", str(tmp_path / "out"), "--hub_token", TOKEN])
    with pytest.raises(UserError, match="begins with 'Llama'"):
        push.main()
    monkeypatch.setattr(sys, "argv", ["push", str(tmp_path), "--hub_token", TOKEN])
    with pytest.raises(UserError, match="has no written model"):
        push.main()


@pytest.mark.parametrize(
    ("output", "problem"), [(300 * "x", r"^xx.* \.\.\. x+ has no written model"), ("", "^OUT has no written model")]
)
def test_an_output_folder_that_cannot_exist(output: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["push", output])
    with pytest.raises(UserError, match=problem):
        push.main()


def test_no_message_shows_a_token(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped option, a line end and a letter that no header may have."""
    monkeypatch.setattr(sys, "argv", ["push", str(tmp_path), "--hub-token=hf_secret"])
    with pytest.raises(UserError, match="--hub-token is an unknown option") as error:
        push.main()
    assert "hf_secret" not in str(error.value)
    assert check_destination("a/b", "out", False, f"{TOKEN}\n").token == TOKEN
    with pytest.raises(UserError, match="characters that no token has") as error:
        check_destination("a/b", "out", False, "hf_se\ncret")
    assert "cret" not in str(error.value)


def test_offline_is_a_mistake(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids it"):
        check_destination("a/b", "out", False, TOKEN)


def test_a_hub_that_does_not_answer_at_the_start_is_a_warning(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert check_destination("b", "out", False, TOKEN).repository == "b"
    assert "the hub does not answer now" in capsys.readouterr().err


def test_a_later_upload_takes_the_options_of_the_run(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_with(tmp_path / "out", config__json=json.dumps({}))
    (tmp_path / "out" / "config.yaml").write_text("hub_model_id: named\nhub_private_repo: true\n")
    monkeypatch.setattr(sys, "argv", ["push", str(tmp_path / "out"), "--hub_token", READ_TOKEN])
    with pytest.raises(UserError, match=r"the model was not uploaded: .*403"):
        push.main()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(sys, "argv", ["push", str(tmp_path / "out")])
    push.main()
    assert list(hub.files) == [f"{USER}/named"] and hub.private == {f"{USER}/named": True}


def test_reasons_are_one_short_line() -> None:
    assert short_reason(ValueError("a\n b.")) == "a b" and len(short_reason(ValueError("x" * 999))) == 300
    assert short_reason(KeyError()) == "KeyError" and TOKEN not in repr(Destination("a", False, TOKEN))
