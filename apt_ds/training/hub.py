"""Uploads a written model to the Hugging Face hub."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from apt_ds.config.errors import UserError
from apt_ds.training.trackers.background import short_reason

REFUSED = (401, 403)  # status of an answer to a token that is wrong or may not do it
# files of an earlier upload that would contradict this one, unless this one has them too
REPLACED = ["model*.safetensors", "model.safetensors.index.json", "modeling_apt_*.py", "apt_*.py", "apt_ds.json"]


@dataclass(frozen=True)
class Destination:
    """Where a model goes.

    Attributes:
        repository: `user/name`, or `name` where the user is not known yet.
        private: whether a repository that the upload makes is private.
        token: the token of the hub.
    """

    repository: str
    private: bool
    token: str = field(repr=False)


def check_destination(name: str, default: str, private: bool, token: str, name_begins: str = "") -> Destination:
    """Check all that an upload needs, before a run starts. The hub is asked for the user of the token.

    Args:
        name: --hub_model_id, `user/name` or `name`. '' takes `default`.
        default: the name of the output folder.
        private: --hub_private_repo.
        token: --hub_token. '' takes the token that the hub's own tools have saved, or that of HF_TOKEN.
        name_begins: what the licence of the base model demands of the name.

    Raises:
        UserError: no token, no network allowed, a name that is not well-formed or that the licence forbids, or a
            token that the hub refuses.
    """
    repository = name or default
    option = f"--hub_model_id {repository!r}" if name else f"the output folder's name {repository!r}"
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UserError(
            f"{option} is not a name of the hub: give --hub_model_id NAME or USER/NAME, of letters, digits, '-', '_' "
            "and '.', at most 96 characters"
        ) from None
    if not repository.rpartition("/")[2].startswith(name_begins):
        raise UserError(
            f"{option} is not allowed: the licence of the base model demands a name that begins with "
            f"'{name_begins}'. Give such a --hub_model_id"
        )
    if is_offline_mode():
        raise UserError("--push_to_hub needs the network, but HF_HUB_OFFLINE forbids it: unset HF_HUB_OFFLINE")
    token = (token or get_token() or "").strip()
    if not token:
        raise UserError("--push_to_hub needs a token: run `hf auth login`, set HF_TOKEN or give --hub_token")
    if not all("!" <= letter <= "~" for letter in token):
        # an HTTP client would print it
        raise UserError("--push_to_hub: the token has characters that no token has. Give another one")
    return Destination(_with_user(repository, token), private, token)


def _with_user(repository: str, token: str) -> str:
    """The name with its user. Without an answer of the hub: the name as it is, and a warning."""
    try:
        user = HfApi(token=token).whoami()["name"]
    except HfHubHTTPError as error:
        if error.response.status_code in REFUSED:
            raise UserError("--push_to_hub: the hub refuses the token. Give another one") from None
        _warn(error)
        return repository
    except Exception as error:  # the hub client has no common error class
        _warn(error)
        return repository
    return repository if "/" in repository else f"{user}/{repository}"


def _warn(error: Exception) -> None:
    text = f"the hub does not answer now ({short_reason(error)}). The run tries again once its model is written"
    print(f"--push_to_hub: {text}", file=sys.stderr, flush=True)


def upload(folder: Path, destination: Destination) -> str:
    """Upload every file of a model's folder. Returns the address of the repository.

    Raises:
        Exception: the hub cannot be reached or refuses.
    """
    api = HfApi(token=destination.token)
    url = api.create_repo(destination.repository, private=destination.private or None, exist_ok=True)
    api.upload_folder(
        repo_id=url.repo_id,
        folder_path=folder,
        commit_message="Upload a model written by apt_ds",
        delete_patterns=REPLACED,
    )
    return str(url)


def upload_or_say_how(output: Path, destination: Destination) -> None:
    """Upload the model of a finished run. A failure is one line that says how to upload it later."""
    try:
        url = upload(output / "model", destination)
    except Exception as error:
        failed(output, destination, short_reason(error))
    else:
        print(f"uploaded: {url}", flush=True)


def failed(output: Path, destination: Destination, why: str) -> None:
    """Say on one line that a model was not uploaded, and how to upload it later."""
    command = f"python -m apt_ds.commands.push {shlex.quote(str(output))} --hub_model_id {destination.repository}"
    command += " --hub_private_repo" if destination.private else ""
    print(f"the run succeeded, but its model was not uploaded: {why}. Later: {command}", file=sys.stderr, flush=True)
