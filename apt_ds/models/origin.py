"""Where a base model comes from, and under which licence: what its own folder says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from apt_ds.models.architectures.licence_terms import TERMS
from apt_ds.models.builtin_models import HUB_NAMES

UNKNOWN = "other"
LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
CARD = "README.md"
CACHED = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")
# words of a licence's text: its name on the hub
TITLES = {
    **{terms.title: terms.licence for terms in TERMS},
    "Apache License": "apache-2.0",
    "MIT License": "mit",
    "BSD 3-Clause License": "bsd-3-clause",
}
BEGINNING = 2000  # characters of a licence that are searched for its title


@dataclass(frozen=True)
class Origin:
    """A base model, as a card names it.

    Attributes:
        name: its hub name, or the last component of its folder.
        hub_name: its hub name. '' if unknown.
        licence: the licence's name on the hub, `UNKNOWN` if not found.
        licence_name, licence_link: of a licence that the hub has no name for. '' for others.
        stated_by: what states the licence: the card or a file. '' if nothing does.
        languages: language codes of its card.
        files: its licence, notice and policy files.
    """

    name: str
    hub_name: str = ""
    licence: str = UNKNOWN
    licence_name: str = ""
    licence_link: str = ""
    stated_by: str = ""
    languages: tuple[str, ...] = ()
    files: tuple[Path, ...] = field(default=())


def origin_of(name: str, source: str) -> Origin:
    """What is known of a base model. Never fails: what cannot be found is left out.

    Args:
        name: the value of --model_name_or_path.
        source: the folder or hub name that it is read from.
    """
    folder = _folder_of(source)
    hub_name = HUB_NAMES.get(name) or (source if not Path(source).is_dir() else _cached_name(Path(source)))
    shown = hub_name or Path(source).absolute().name
    files = tuple(sorted(_legal(folder))) if folder is not None else ()
    card = _card(folder) if folder is not None else {}
    languages = card.get("language") or ()
    languages = (languages,) if isinstance(languages, str) else tuple(map(str, languages))
    common: dict[str, Any] = {"name": shown, "hub_name": hub_name, "languages": languages, "files": files}
    if licence := card.get("license"):
        licence = licence[0] if isinstance(licence, list) and licence else licence
        return Origin(
            **common,
            licence=str(licence),
            licence_name=str(card.get("license_name") or ""),
            licence_link=str(card.get("license_link") or ""),
            stated_by="its model card",
        )
    for path in files:
        if text_licence := licence_of_text(path):
            return Origin(**common, licence=text_licence, stated_by=f"its file {path.name}")
    if name in HUB_NAMES:
        return Origin(**common, licence="apache-2.0", stated_by="the package that holds it")
    return Origin(**common)


def licence_in_card(folder: Path) -> str:
    """The hub's name of the licence that a folder's model card states. '' without one."""
    return str(_card(folder).get("license") or "")


def is_repository(name: str) -> bool:
    """Whether a text is the well-formed name of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def licence_of_text(path: Path) -> str:
    """The hub's name of the licence in a file. '' if it is unknown."""
    try:
        text = " ".join(path.read_text(encoding="utf8", errors="replace")[:BEGINNING].split()).lower()
    except OSError:
        return ""
    return next((licence for title, licence in TITLES.items() if title.lower() in text), "")


def _folder_of(source: str) -> Path | None:
    """The folder of a base model. Of a hub name: the local copy, with the small files about it."""
    if Path(source).is_dir():
        return Path(source)
    wanted = [*LEGAL, CARD]
    # without a network, or with a model that was cached without them: what is cached
    for local in (False, True):
        with suppress(Exception):  # the hub client has no common error class
            return Path(snapshot_download(source, allow_patterns=wanted, local_files_only=local))
    return None


def _cached_name(folder: Path) -> str:
    """The hub name of a folder of the hub's cache. '' for any other folder."""
    match = CACHED.search(f"{folder.absolute().as_posix()}/")
    return f"{match[1]}/{match[2]}" if match else ""


def _legal(folder: Path) -> Iterator[Path]:
    for pattern in LEGAL:
        yield from (path for path in folder.glob(pattern) if path.is_file())


def _card(folder: Path) -> dict[str, Any]:
    """The metadata of a folder's model card. {} without one that can be read."""
    try:
        return dict(ModelCard.load(folder / CARD, ignore_metadata_errors=True).data.to_dict())
    except Exception:  # a card is written by hand: its YAML can be anything
        return {}
